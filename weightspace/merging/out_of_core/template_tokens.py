"""Special tokens of a chat template: those that the output's tokenizer lacks, and one that should end generation.

Only tokens that a template spells out are seen, such as ``<|im_end|>``, not those it puts together from parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from weightspace.checkpoints.json_file import parse_json, read_optional_json_object
from weightspace.checkpoints.vocabulary import Tokens, read_vocabulary, tokens_of_json
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary

#: Spellings of special tokens: ``<|…|>``, ``[|…|]`` and Gemma's.
_SPECIAL = re.compile(r"<[|｜][^\s|｜<>{}'\"]+[|｜]>|\[\|[^\s|\[\]{}'\"]+\|\]|<(?:start|end)_of_turn>")

#: Those that end a turn.
_END = re.compile(r"[<\[][|｜]?(?:im_end|eot|eot_id|end|turn_end|end_?of_?turn)[|｜]?[>\]]")

#: Jinja comments.
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)

#: Files with the ids that end generation, and files that name the end-of-sequence token, the first of which counts.
_IDS = ("generation_config.json", "config.json")
_NAMES = ("tokenizer_config.json", "special_tokens_map.json")


def template_warnings(
    template: str, tokenizer: Path, donor: Path | None, vocabulary: MovedVocabulary | None, texts: Mapping[str, str]
) -> Iterator[str]:
    """Yield a message about tokens that the tokenizer lacks, and about an end of turn that does not end a text.

    Args:
        template: Jinja source.
        tokenizer: folder of the output's tokenizer.
        donor: folder of the output's configuration.
        vocabulary: the output's vocabulary, if rows are reordered.
        texts: file name -> new text of configurations that change.

    Raises:
        CheckpointError: a file is damaged.
    """
    tokens = list(dict.fromkeys(_SPECIAL.findall(_COMMENT.sub("", template))))
    ids = _ids(tokenizer, vocabulary) if tokens else None
    if ids is None:
        return
    lacking = [token for token in tokens if token not in ids]
    if lacking:
        yield (
            f"chat_template uses {', '.join(map(repr, lacking))}, which the output's tokenizer does not have and "
            "splits into pieces that the models were not trained on. Add them under `tokenizer.tokens`, or choose the "
            "template of the models (`chat_template: auto`)."
        )
    ends = [token for token in tokens if _END.fullmatch(token) and token in ids]
    eos, stops = _eos_token(tokenizer), _stop_ids(donor, texts)
    if ends and (eos or stops) and eos not in ends and stops.isdisjoint(ids[token] for token in ends):
        found = f"eos_token is {eos!r}" if eos else "eos_token_id is another token"
        yield (
            f"chat_template ends turns with {ends[-1]!r}, but {found}: generation does not stop after an answer. Set "
            "eos_token in tokenizer_config.json and eos_token_id in generation_config.json of the output."
        )


def _ids(tokenizer: Path, vocabulary: MovedVocabulary | None) -> Tokens | None:
    """Return the output's tokens and their ids; None if they are in files of an unknown format, or in code."""
    if vocabulary is not None and vocabulary.extended is not None:
        path = tokenizer / "tokenizer.json"
        return tokens_of_json(parse_json(vocabulary.extended.text, str(path)), path)
    known = read_vocabulary(tokenizer)
    if known.others or not known.tokens or any(tokenizer.glob("tokenization_*.py")):
        return None
    return {token: number for ids in known.tokens.values() for token, number in ids.items()} | known.rows


def _eos_token(tokenizer: Path) -> str | None:
    """Return the token that ends a text according to the tokenizer."""
    for name in _NAMES:
        token = read_optional_json_object(tokenizer / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def _stop_ids(donor: Path | None, texts: Mapping[str, str]) -> set[int]:
    """Return the ids that end generation according to the output's configuration."""
    found: set[int] = set()
    for name in _IDS:
        own = {} if name in texts or donor is None else read_optional_json_object(donor / name)
        fields = parse_json(texts[name], name) if name in texts else own
        given = fields.get("eos_token_id")
        found.update(number for number in (given if isinstance(given, list) else [given]) if type(number) is int)
    return found
