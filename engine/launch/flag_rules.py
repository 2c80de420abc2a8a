"""vLLM's flags whose meaning we can't provide, with the values that ask for no more than we do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlagRule:
    why: str
    allowed: frozenset[str] = frozenset()


def _only(why: str, *allowed: str) -> FlagRule:
    return FlagRule(why, frozenset(allowed))


_ONE_DEVICE = "devices share a model by --tensor-parallel-size"
_NOT_YET = "not supported yet"
_NO_TLS = "the engine serves plain HTTP; put a TLS proxy in front of it"
_NO_QUANTIZATION = "the engine reads quantized checkpoints, and quantizes none itself"
_NO_SPECULATION = "speculative decoding is not supported yet"

RULES: dict[str, FlagRule] = {
    # devices
    "pipeline-parallel-size": _only(_ONE_DEVICE, "1"),
    "data-parallel-size": _only(_ONE_DEVICE, "1"),
    "decode-context-parallel-size": _only(_ONE_DEVICE, "1"),
    "prefill-context-parallel-size": _only(_ONE_DEVICE, "1"),
    "nnodes": _only(_ONE_DEVICE, "1"),
    "enable-expert-parallel": _only(_ONE_DEVICE, "false"),
    "device-ids": _only("choose devices with CUDA_VISIBLE_DEVICES"),
    # weights and cache
    "quantization-config": _only(_NO_QUANTIZATION),
    "kv-cache-dtype": _only("the KV cache has the same dtype as the weights", "auto"),
    "config-format": _only("checkpoints must be in Hugging Face layout", "auto", "hf"),
    "tokenizer-mode": _only("only Hugging Face tokenizers are supported", "auto", "hf"),
    "tokenizer-revision": _only("pass a directory as --tokenizer"),
    "revision": _only("pass the snapshot's directory as --model"),
    "hf-config-path": _only(_NOT_YET),
    "cpu-offload-gb": _only("weights stay on the device", "0", "0.0"),
    "kv-offloading-size": _only(_NOT_YET),
    "skip-tokenizer-init": _only("the engine needs a tokenizer", "false"),
    # decoding
    "enable-chunked-prefill": _only("long prompts are always prefilled in chunks", "true"),
    "scheduling-policy": _only("requests of one priority run in order of arrival", "fcfs", "priority"),
    "speculative-config": _only(_NO_SPECULATION),
    "spec-method": _only(_NO_SPECULATION),
    "spec-model": _only(_NO_SPECULATION),
    "spec-tokens": _only(_NO_SPECULATION),
    "logits-processors": _only(_NOT_YET),
    "lora-target-modules": _only("an adapter's own adapter_config.json names its modules"),
    "enable-prompt-embeds": _only(_NOT_YET, "false"),
    "watermark-config": _only(_NOT_YET),
    "diffusion-config": _only(_NOT_YET),
    "kv-transfer-config": _only(_NOT_YET),
    # what the server says
    "tool-parser-plugin": _only("parsers are built in: --tool-call-parser", ""),
    "reasoning-parser-plugin": _only("parsers are built in: --reasoning-parser", ""),
    "response-role": _only("answers have the role assistant", "assistant"),
    "return-tokens-as-token-ids": _only(_NOT_YET, "false"),
    "enable-force-include-usage": _only("clients request usage with stream_options.include_usage", "false"),
    "enable-prompt-tokens-details": _only("cached tokens are always reported", "true"),
    "sse-keep-alive-interval": _only(_NOT_YET, "0", "0.0"),
    "tokens-only": _only("responses contain text", "false"),
    # how it is reached
    "config": _only("pass the flags on the command line"),
    "headless": _only("the engine always serves HTTP", "false"),
    "grpc": _only("the engine supports HTTP only", "false"),
    "grpc-port": _only("the engine supports HTTP only"),
    "uds": _only("the engine listens on a TCP port"),
    "api-server-count": _only("the engine serves HTTP from one process", "1"),
    "root-path": _only("the engine serves its routes at /", ""),
    "middleware": _only("custom middleware is not supported"),
    "allowed-origins": _only("the server in front of the engine handles CORS", "[]"),
    "ssl-keyfile": _only(_NO_TLS),
    "ssl-certfile": _only(_NO_TLS),
    "ssl-ca-certs": _only(_NO_TLS),
}
