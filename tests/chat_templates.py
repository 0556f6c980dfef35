"""Chat templates in the styles of well-known families, with tiny tokenizers of the same kinds."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is defined and tools is not none %}
    {{- "Tools:\\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson }}{{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}
        {{- "}" }}{{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>')
            and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content, reasoning = message.content, '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning =
                content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and reasoning %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n')
                + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- function.name }}{{- '", "arguments": ' }}
            {%- set given = function.arguments %}
            {{- given if given is string else given | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)

# Puts its marks together from the speaker's role.
PHI3 = (
    "{% for message in messages %}"
    "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}"
    "{{ eos_token }}{% endif %}"
)

_TEXT = [
    "the rain in Spain stays mainly in the plain and the sun shines on the other side",
    "user assistant system tool model ipython name parameters arguments helpful You are a",
    '{"name": "weather", "arguments": {"city": "Rome"}} <b>bold</b> [x] im_start im_end | > <',
    "Grüße, naïve café, über, Straße 12345 67890 think thinking thought",
]


def byte_level(template: str, special: list[str], marks: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE tokenizer; `special` lie in its vocabulary, `marks` are added after it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        _TEXT * 3,
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet),
    )
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return _finished(PreTrainedTokenizerFast(tokenizer_object=backend), template, special)


def outside_vocabulary(template: str, special: list[str], ignore_merges: bool = True) -> Any:
    """Byte-level BPE whose special tokens lie behind the vocabulary, as Llama 3's do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers import trainers as t
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(_TEXT * 3, t.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    bos = special[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return _finished(PreTrainedTokenizerFast(tokenizer_object=backend), template, special)


def sentence_pieces(template: str, special: list[str], prepend: str = "first") -> Any:
    """Characters and merges with ▁ for spaces, one put before the text, as SentencePiece does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers import trainers as t
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend)
    backend.train_from_iterator(
        _TEXT * 3, t.BpeTrainer(vocab_size=440, special_tokens=["<unk>", *special])
    )
    state = json.loads(backend.to_str())  # bytes are words of the vocabulary and no added tokens
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{n:02X}>": len(vocabulary) + n for n in range(256)}
    backend = Tokenizer.from_str(json.dumps(state))
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<table>", normalized=False)])
    return _finished(made, template, special)


def _finished(tokenizer: Any, template: str, special: list[str]) -> Any:
    tokenizer.chat_template = template
    tokenizer.bos_token, tokenizer.eos_token = special[0], special[1]
    return tokenizer


@cache
def families() -> dict[str, Any]:
    """A tokenizer with its template, by family."""
    llama3 = "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|> <|end_of_text|>"
    thinking = "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>"
    gemma = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<pad>"]
    phi3 = ["<|start|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
    return {
        "chatml": byte_level(CHATML, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        "llama3": outside_vocabulary(LLAMA3, llama3.split()),
        "qwen3": byte_level(
            QWEN3, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], tuple(thinking.split())
        ),
        "gemma": sentence_pieces(GEMMA, gemma),
        "phi3": sentence_pieces(PHI3, phi3, "always"),
    }
