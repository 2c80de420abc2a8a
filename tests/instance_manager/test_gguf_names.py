"""What names of GGUF files say."""

from __future__ import annotations

import pytest

from instance_manager.gguf.names import (
    GgufSet,
    default_of,
    is_folder_of,
    is_tag,
    main_base,
    projector_for,
    sets_of,
    split_tag,
    with_tag,
)


def only(name: str) -> GgufSet:
    (found,) = sets_of([name])
    return found


@pytest.mark.parametrize(
    ("name", "base", "quantisation"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B", "Q8_0"),
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "tinyllama-1.1b-chat-v1.0", "Q4_K_M"),
        ("model_q4_k_m.gguf", "model", "Q4_K_M"),
        ("Qwen3-30B-A3B-UD-IQ2_XXS.gguf", "Qwen3-30B-A3B", "UD-IQ2_XXS"),
        ("gemma-3-4b-it-f16.gguf", "gemma-3-4b-it", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b", "MXFP4"),
        ("bitnet-TQ1_0.gguf", "bitnet", "TQ1_0"),
        ("Foo-Q4_K_M-imat.gguf", "Foo-imat", "Q4_K_M"),
        ("BF16/Foo-BF16.gguf", "Foo", "BF16"),
        ("Q8_0/model.gguf", "model", "Q8_0"),
        ("Q6_K.gguf", "", "Q6_K"),
        ("phi-4.gguf", "phi-4", None),
        ("Qwen3.gguf", "Qwen3", None),
    ],
)
def test_a_name_has_a_base_and_a_quantisation(name: str, base: str, quantisation: str | None) -> None:
    assert (only(name).base, only(name).quantisation) == (base, quantisation)


def test_parts_are_one_model_and_those_that_are_missing_are_named() -> None:
    names = [f"m-Q4_K_M-{number:05}-of-00003.gguf" for number in (3, 1, 2)]
    assert only_of(names) == GgufSet("m", "Q4_K_M", tuple(sorted(names)))
    found = only_of(names[:1])
    assert found.files == ("m-Q4_K_M-00003-of-00003.gguf",)
    assert found.missing == ("m-Q4_K_M-00001-of-00003.gguf", "m-Q4_K_M-00002-of-00003.gguf")
    for odd in ("m-00002-of-00001.gguf", "m-00000-of-00002.gguf", "m-00001-of-99999.gguf"):
        assert only_of([odd]).missing == ()


def only_of(names: list[str]) -> GgufSet:
    (found,) = sets_of(names)
    return found


def test_what_lies_beside_models_is_none() -> None:
    beside = [
        "mmproj-F16.gguf", "x-MMPROJ-f16.gguf", "imatrix.gguf", "mtp-x-Q8_0.gguf", "eagle3-x-Q8_0.gguf",
        "readme.md", "x.safetensors", "x.gguf.part",
    ]  # fmt: skip
    assert sets_of(beside) == []


def test_tags_are_told_from_adapters() -> None:
    assert split_tag("owner/name:Q4_K_M") == ("owner/name", "Q4_K_M")
    assert split_tag("name:q8_0") == ("name", "q8_0")
    for name in ("name", "name:sql", "name:latest", "name:", ":Q4_K_M", "name:8b"):
        assert split_tag(name) == (name, None)
    assert all(map(is_tag, ("Q4_K_M", "UD-Q4_K_XL", "IQ1_S", "BF16", "f32", "MXFP4_MOE", "Q4_0")))
    assert not any(map(is_tag, ("sql", "latest", "Q", "Q4 K", "Qwen", "4bit", "")))


def test_the_default_is_chosen_as_llama_cpp_does() -> None:
    def chosen(*tags: str) -> str:
        found = default_of(sets_of([f"m-{tag}.gguf" for tag in tags]))
        assert found is not None
        return str(found.quantisation)

    assert chosen("Q2_K", "Q4_K_M", "Q8_0") == "Q4_K_M"
    assert chosen("Q2_K", "Q8_0") == "Q8_0"
    assert chosen("Q6_K", "Q5_0") == "Q5_0"
    whole_first = sets_of(["m-Q4_K_M-00001-of-00002.gguf", "m-Q8_0.gguf"])
    assert default_of(whole_first) == only("m-Q8_0.gguf")
    assert default_of([]) is None


def test_a_quantisation_is_found_in_any_case_and_without_its_makers_mark() -> None:
    sets = sets_of(["m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-UD-Q4_K_M.gguf"])

    def file(tag: str) -> str | None:
        found = with_tag(sets, tag)
        return None if found is None else found.files[0]

    assert file("q4_k_m") == "m-Q4_K_M.gguf"
    assert file("Q4_K_XL") == file("UD-Q4_K_XL") == "m-UD-Q4_K_XL.gguf"
    assert file("Q4") is file("Q8_0") is None


def test_a_repositorys_own_model_is_that_of_its_name() -> None:
    sets = sets_of(["a-Q8_0.gguf", "Foo-128K-Q8_0.gguf", "Foo-Q8_0.gguf"])
    assert main_base(sets, "org/foo-GGUF", is_repository=True) == "Foo"
    assert main_base(sets, "org/other", is_repository=True) == "Foo-128K", "the first, as llama.cpp takes"
    assert main_base(sets, "org/other", is_repository=False) is None
    assert main_base(sets_of(["x-Q8_0.gguf", "X-Q4_0.gguf"]), "other", is_repository=False) == "X"


def test_folders_of_one_quantisation_belong_to_the_one_they_are_in() -> None:
    assert is_folder_of("Q4_K_M", "org/Foo-GGUF") and is_folder_of("Foo-UD-Q2_K_XL", "org/Foo-GGUF")
    assert not is_folder_of("Bar-Q4_K_M", "org") and not is_folder_of("Foo", "Foo-GGUF")


@pytest.mark.parametrize(
    ("projectors", "expected"),
    [
        (["mmproj-F32.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf", "mmproj-Q8_0.gguf"], "mmproj-F16.gguf"),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        (["foo-mmproj-f16.gguf", "mmproj-bar-f16.gguf"], "foo-mmproj-f16.gguf"),
        (["mmproj-F16.gguf", "mmproj-foo-Q8_0.gguf"], "mmproj-foo-Q8_0.gguf"),
        (["other/mmproj-F16.gguf"], None),
        ([], None),
    ],
)
def test_a_projector_belongs_to_the_model_beside_it(projectors: list[str], expected: str | None) -> None:
    sets = sets_of(["Foo-Q4_K_M.gguf"])
    assert projector_for(sets[0], projectors, sets) == expected


def test_beside_several_models_a_projector_belongs_to_that_of_its_name_or_to_all() -> None:
    sets = sets_of(["Bar-Q4_K_M.gguf", "Foo-Q4_K_M.gguf"])
    projectors = ["mmproj-Foo-f16.gguf"]
    assert [projector_for(one, projectors, sets) for one in sets] == [None, *projectors]
    assert [projector_for(one, ["mmproj-F16.gguf"], sets) for one in sets] == ["mmproj-F16.gguf"] * 2
    (below,) = sets_of(["Q8_0/Foo-Q8_0.gguf"])
    assert projector_for(below, ["mmproj-F16.gguf", "BF16/mmproj-F16.gguf"], [below]) == "mmproj-F16.gguf"
