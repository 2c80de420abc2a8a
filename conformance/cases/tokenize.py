"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal
from conformance.client import Api

group = Group("tokenize")

_TEXTS = {
    "ascii": "Hello world",
    "spaces": "  two   spaces  ",
    "lines": "a\nb\r\n\tc",
    "umlauts": "Größe, ça et là",
    "cjk": "你好,世界",
    "emoji": "🙂👩‍👩‍👧",
    "digits": "3.14159 26535",
    "code": "def f(x):\n    return x**2  # squared",
}


async def _tokenize(api: Api, **fields: Any) -> Any:
    return (await api.post("/tokenize", {"model": api.facts.model, **fields})).ok()


@group.each(_TEXTS, Need.GENERATE)  # encoders' tokenizers may drop case and white space
async def there_and_back(api: Api, text: str) -> None:
    tokens = await api.tokens_of(text)
    check(tokens and all(isinstance(token, int) for token in tokens), f"tokens {tokens}")
    equal(await api.text_of(tokens), text, "text")


@group.each(_TEXTS)
async def counts_its_tokens(api: Api, text: str) -> None:
    answer = await _tokenize(api, prompt=text)
    equal(answer["count"], len(answer["tokens"]), "count")
    equal(answer["max_model_len"], api.facts.max_model_len, "max_model_len")


@group.case()
async def token_strings_on_request(api: Api) -> None:
    answer = await _tokenize(api, prompt="Hello world", return_token_strs=True)
    equal(len(answer["token_strs"]), len(answer["tokens"]), "number of token_strs")
    check(all(isinstance(word, str) for word in answer["token_strs"]), "token_strs are not strings")


@group.case()
async def token_strings_only_on_request(api: Api) -> None:
    check(
        (await _tokenize(api, prompt="Hello")).get("token_strs") is None, "token_strs that were not requested"
    )


@group.case()
async def the_model_may_be_left_out(api: Api) -> None:
    named = await _tokenize(api, prompt="Hello world")
    equal((await api.post("/tokenize", {"prompt": "Hello world"})).ok()["tokens"], named["tokens"], "tokens")


@group.case()
async def an_empty_text_has_no_tokens(api: Api) -> None:
    equal((await _tokenize(api, prompt="", add_special_tokens=False))["tokens"], [], "tokens")


@group.case()
async def no_tokens_are_an_empty_text(api: Api) -> None:
    equal(await api.text_of([]), "", "text")


@group.case(Need.CHAT)
async def a_conversation(api: Api) -> None:
    answer = await _tokenize(api, messages=[{"role": "user", "content": "Hello world"}])
    equal(answer["count"], len(answer["tokens"]), "count")
    check("Hello world" in await api.text_of(answer["tokens"]), "the prompt lacks the message")


@group.case(Need.CHAT)
async def a_conversation_without_generation_prompt(api: Api) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    whole = (await _tokenize(api, messages=messages))["tokens"]
    without = (await _tokenize(api, messages=messages, add_generation_prompt=False))["tokens"]
    equal(whole[: len(without)], without, "the prompt's beginning")


@group.case(Need.CHAT)
async def a_conversation_to_be_continued(api: Api) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well met"}]
    answer = await _tokenize(api, messages=messages, add_generation_prompt=False, continue_final_message=True)
    check((await api.text_of(answer["tokens"])).endswith("Well met"), "the last message is closed")


@group.case(Need.CHAT)
async def a_conversation_with_its_own_variables(api: Api) -> None:
    answer = await _tokenize(
        api, messages=[{"role": "user", "content": "Hello"}], chat_template_kwargs={"unused": 1}
    )
    check(answer["tokens"], "no tokens")


@group.case(Need.CHAT)
async def token_strings_of_a_conversation(api: Api) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = await _tokenize(api, messages=messages, return_token_strs=True)
    equal(len(answer["token_strs"]), len(answer["tokens"]), "number of token_strs")


@group.case(Need.GENERATE)
async def a_prompt_has_as_many_tokens_as_usage_says(api: Api) -> None:
    answer = await _tokenize(api, prompt="Hello there, world")
    usage = (await api.complete("Hello there, world", max_tokens=1))["usage"]
    equal(usage["prompt_tokens"], answer["count"], "prompt_tokens")


@group.case(Need.CHAT)
async def a_chat_has_as_many_tokens_as_usage_says(api: Api) -> None:
    messages = [{"role": "user", "content": "Hello there, world"}]
    answer = await _tokenize(api, messages=messages)
    usage = (await api.chat(messages, max_tokens=1))["usage"]
    equal(usage["prompt_tokens"], answer["count"], "prompt_tokens")


@group.each(
    {
        "prompt-is-a-number": ("/tokenize", {"prompt": 5}),
        "nothing": ("/tokenize", {}),
        "tokens-are-text": ("/detokenize", {"tokens": "abc"}),
        "token-is-negative": ("/detokenize", {"tokens": [-1]}),
        "token-is-huge": ("/detokenize", {"tokens": [2**70]}),
        "token-is-outside-the-vocabulary": ("/detokenize", {"tokens": [2**31]}),
        "no-tokens-field": ("/detokenize", {}),
    }
)
async def refuses(api: Api, request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    await api.refused(await api.post(path, {"model": api.facts.model, **body}))


@group.each({"tokenize": ("/tokenize", {"prompt": "a"}), "detokenize": ("/detokenize", {"tokens": [1]})})
async def an_unknown_model_is_404(api: Api, request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    error = await api.refused(await api.post(path, {"model": "no-such-model", **body}), 404)
    equal(error["param"], "model", "param")
