"""The prompt template of a reranker for a query and a document."""

from __future__ import annotations

from engine.config import ServerConfig
from engine.pooling.plan import PoolingPlan
from engine.server.model.chat_template import ChatTemplate

# As published by Qwen with the model; `instruction` defines relevance.
_QWEN3_RERANKER = """\
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction | default("Given a web search query, retrieve relevant passages that answer \
the query") }}
<Query>: {{ (messages | selectattr("role", "eq", "query") | first).content }}
<Document>: {{ (messages | selectattr("role", "eq", "document") | first).content }}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""


def score_template(plan: PoolingPlan, config: ServerConfig) -> ChatTemplate | None:
    """The template from --chat-template, else the one the model was trained with, if known.

    Never the tokenizer's chat template: classifiers inherit it from the chat model they are based on.
    """
    source = config.chat_template
    if source is None and plan.classifier is not None and plan.classifier.is_qwen3_reranker:
        source = _QWEN3_RERANKER
    if source is None:
        return None
    return ChatTemplate({"default": source}, special_tokens={}, content_format="string")
