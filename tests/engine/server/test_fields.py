"""Every field of vLLM 0.32 and OpenAI works, is refused by name, or is accepted without effect."""

from __future__ import annotations

import pytest

from engine.server.app.openapi_operations import OPERATIONS

# From GET /openapi.json of a generating vLLM 0.32 server.
VLLM = {
    "/v1/completions": """
        add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params echo
        frequency_penalty ignore_eos include_stop_str_in_output kv_transfer_params length_penalty
        logit_bias logprob_token_ids logprobs max_tokens min_p min_tokens mm_payload model n
        presence_penalty priority prompt prompt_embeds prompt_logprobs repetition_detection
        repetition_penalty request_id response_format return_mm_kwargs return_token_ids
        return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed session_id
        skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval
        stream_options structured_outputs suffix temperature thinking_token_budget top_k top_p
        truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking
    """,
    "/v1/chat/completions": """
        add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
        chat_template_kwargs continue_final_message documents ec_transfer_params echo frequency_penalty
        ignore_eos include_reasoning include_stop_str_in_output kv_transfer_params length_penalty
        logit_bias logprob_token_ids logprobs max_completion_tokens max_tokens media_io_kwargs messages
        min_p min_tokens mm_payload mm_processor_kwargs model n parallel_tool_calls presence_penalty
        priority prompt_logprobs reasoning_effort repetition_detection repetition_penalty request_id
        response_format return_mm_kwargs return_prompt_text return_token_ids return_token_offsets
        return_tokens_as_token_ids routed_experts_prompt_start seed session_id skip_special_tokens
        spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
        structured_outputs temperature thinking_token_budget tool_choice tools top_k top_logprobs top_p
        truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking
    """,
}

# From its API reference, except fields of vLLM.
OPENAI = {
    "/v1/completions": """
        best_of
    """,
    "/v1/chat/completions": """
        audio function_call functions metadata modalities moderation prediction prompt_cache_key
        prompt_cache_retention safety_identifier service_tier store verbosity web_search_options
    """,
}


@pytest.mark.parametrize("path", VLLM)
def test_no_field_is_unknown(path: str) -> None:
    operation = OPERATIONS["POST", path]
    works = {field.alias or name for body in operation.bodies for name, field in body.model_fields.items()}
    refused = set(operation.rules.names)
    assert not works & refused
    assert {*VLLM[path].split(), *OPENAI[path].split()} <= works | refused
