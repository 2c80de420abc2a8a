"""What clients that may only send requests read: no folders of this machine."""

from __future__ import annotations

import pytest

from instance_manager.errors import InstanceFailedToStart, ModelNotFound, without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/x/p: its rank is 64", "…/p: its rank is 64"),
        ("--lora-modules a: /srv/x/p has no", "--lora-modules a: …/p has no"),
        ("model '/srv/my models/x': no", "model '…/x': no"),
        ("under MODEL_DIRS ('/a b/c', '/d')", "under MODEL_DIRS ('…/c', '…/d')"),
        ("params.chat_template=/secret/t.jinja: no", "params.chat_template=…/t.jinja: no"),
        ('{"path":"/secret/place/a"}', '{"path":"…/a"}'),
        ("~/models/x is", "…/x is"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("GET /instances/x; POST /models/x/start", "GET /instances/x; POST /models/x/start"),
        ("a LoRA adapter of 'org/name' (docs/models.md)", "a LoRA adapter of 'org/name' (docs/models.md)"),
    ],
)
def test_paths_of_this_machine_become_their_last_names(text: str, shown: str) -> None:
    assert without_folders(text) == shown
    assert ModelNotFound(text).public == shown
    assert str(ModelNotFound(text)) == text


def test_a_known_path_may_have_spaces() -> None:
    assert without_folders("it is /srv/my models/x: no", "/srv/my models/x", "name") == "it is …/x: no"


def test_a_public_text_of_its_own_stays() -> None:
    assert InstanceFailedToStart("a", public="of /b/c").public == "of /b/c"
