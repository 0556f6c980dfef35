"""A target's tokenizer without transformers, whose import takes most of a start.

It is what the Hugging Face tokenizer is made of: the library `tokenizers` and a chat template in
jinja2. It is only used where it was compared with that one, when a target was kept
(`describe`). What it does not know itself the Hugging Face tokenizer does, loaded for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from dspark.targets import light_template

_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_KEPT = (
    *(f"{name}_token{ending}" for name in _TOKENS for ending in ("", "_id")),
    *("all_special_tokens", "all_special_ids", "special_tokens_map", "chat_template"),
    *("clean_up_tokenization_spaces", "model_max_length"),
)
_USER = {"role": "user", "content": "Why is the sky \u00e9?\n"}
_PROBES = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER],
    [_USER, {"role": "assistant", "content": "Because."}, _USER],
)


class LightTokenizer:
    """As much of a Hugging Face tokenizer as targets need.

    Args:
        backend: what it encodes with.
        facts: of `describe`; they become attributes.
        whole: loads the Hugging Face tokenizer.
    """

    def __init__(self, backend: Tokenizer, facts: Mapping[str, Any], whole: Callable[[], Any]):
        self.backend_tokenizer, self._load_whole = backend, whole
        self.chat_template: str | dict[str, str] | None = None
        self.special_tokens_map: dict[str, str] = {}
        self.unk_token_id: int | None = None
        vars(self).update(facts)

    @cached_property
    def _whole(self) -> Any:
        return self._load_whole()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._whole, name)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(
        self, text: Any, add_special_tokens: bool = True, verbose: bool = True, **more: Any
    ) -> Any:
        """Token ids of a text, as `input_ids`."""
        if more or not isinstance(text, str):
            return self._whole(text, add_special_tokens=add_special_tokens, **more)
        found = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": found.ids}

    def decode(self, ids: Any, skip_special_tokens: bool = False, **more: Any) -> str:
        """Text of token ids."""
        if more or not isinstance(ids, list):
            return str(self._whole.decode(ids, skip_special_tokens=skip_special_tokens, **more))
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Tokens beside the vocabulary, by id."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Ids of whole tokens; that of the unknown one for others."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend_tokenizer.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int], **more: Any) -> Any:
        """Names of ids; None for those that are none."""
        if more:
            return self._whole.convert_ids_to_tokens(ids, **more)
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(i)) for i in ids]

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Any] | None = None
    ) -> str:
        """Source of the template for a conversation with or without tools.

        Raises:
            ValueError: there is none.
        """
        own = self.chat_template
        if isinstance(own, dict):
            name = "tool_use" if tools is not None and "tool_use" in own else "default"
            if chat_template is None and name not in own:
                raise ValueError("There are several chat templates, and none is the default")
            return own[name] if chat_template is None else own.get(chat_template, chat_template)
        if chat_template is None and own is None:
            raise ValueError("There is no chat template")
        return str(own if chat_template is None else chat_template)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """A conversation's text, or its token ids.

        Raises:
            ValueError: there is no template, or nothing to apply it to.
            jinja2.TemplateError: the template refuses the conversation.
        """
        if not conversation:
            raise ValueError("The conversation is empty")
        text = light_template.render(
            self.get_chat_template(chat_template, tools),
            conversation,
            tools,
            add_generation_prompt,
            {**self.special_tokens_map, **variables},
        )
        if not tokenize:
            return text
        found = self(text, add_special_tokens=False)
        return found if return_dict else found["input_ids"]


def describe(tokenizer: Any) -> tuple[str, dict[str, Any]] | None:
    """What `LightTokenizer` needs to stand for a Hugging Face tokenizer, in plain values.

    Returns:
        the backend in JSON and the facts; None where it could not stand for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or tokenizer.clean_up_tokenization_spaces:
        return None
    facts = {name: getattr(tokenizer, name, None) for name in _KEPT}
    try:
        facts, text = json.loads(json.dumps(facts)), backend.to_str()
        bare = Tokenizer.from_str(text)
        bare.no_truncation()
        bare.no_padding()
        light = LightTokenizer(bare, facts, lambda: tokenizer)
        return (bare.to_str(), facts) if _same(light, tokenizer) else None
    except Exception:  # tokenizers of other kinds do what they like
        return None


def restore(text: str, facts: Mapping[str, Any], whole: Callable[[], Any]) -> LightTokenizer:
    """The tokenizer that `describe` described."""
    return LightTokenizer(Tokenizer.from_str(text), facts, whole)


def _same(light: LightTokenizer, whole: Any) -> bool:
    """Whether both encode, decode and render some texts alike."""
    special = " ".join(map(str, whole.all_special_tokens))
    for text in ("Hello, world", f"  a\u00e9 {special}\tx\n", "\U0001f600 don't n't ."):
        for around in (True, False):
            ids = list(whole(text, add_special_tokens=around)["input_ids"])
            if list(light(text, add_special_tokens=around)["input_ids"]) != ids:
                return False
            if whole.decode(ids, skip_special_tokens=around) != light.decode(ids, around):
                return False
    return not whole.chat_template or all(
        _rendered(light, probe) == _rendered(whole, probe) for probe in _PROBES
    )


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str | None:
    try:
        return str(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )
    except Exception:  # a template refuses some conversations
        return None
