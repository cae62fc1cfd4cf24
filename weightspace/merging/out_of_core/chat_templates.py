"""Chat template of the output: a built-in one, the models' most frequent one, or Jinja; and the files that hold it.

The built-in ones have the names of mergekit's but the formats documented for their models: mergekit's own files
put line breaks and blanks between the messages of ``llama3`` and ``exaone``, and none before the last
``### Response:`` of ``alpaca``.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors, synced_file
from weightspace.checkpoints.companion_files import is_tokenizer
from weightspace.checkpoints.json_file import json_document, read_optional_json_object
from weightspace.errors import WeightspaceError
from weightspace.merging.out_of_core.template_syntax import check_syntax
from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.types import Recipe, Warn
from weightspace.suggestions import unknown

#: Files in which transformers looks for a template, in order: its own, that of processors, the configuration.
_FILE = "chat_template.jinja"
_LEGACY = "chat_template.json"
_CONFIG = "tokenizer_config.json"

#: Folder of further templates, in addition to the one named ``default``.
_FURTHER = "additional_chat_templates"

#: Minimum number of characters of a template, so that a misspelt name is not taken for one.
_SHORTEST = 20

#: Suffixes of files that hold a template.
_SUFFIXES = (".jinja", ".jinja2", ".j2", ".json", ".txt")

_ALPACA = (
    "{% set parts = namespace(any=false) %}"
    "{% set titles = {'user': '### Instruction:\\n', 'assistant': '### Response:\\n', 'user_context': '### Input:\\n',"
    " 'system': ''} %}"
    "{% for message in messages %}{% if message['role'] in titles %}"
    "{{ ('\\n\\n' if parts.any else '') + titles[message['role']] + message['content'] | trim }}"
    "{% set parts.any = true %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_EXAONE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)

_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_MISTRAL = (
    "{% set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{{ bos_token }}{% for message in turns %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('Expected user and assistant in turn after a system message, found ' + message['role']) }}"
    "{% elif (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Expected user and assistant in turn, beginning with the user') }}"
    "{% elif message['role'] == 'user' %}"
    "{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

#: Name in recipes -> template.
TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}


def chat_template(
    recipe: Recipe, members: Sequence[Member], tokenizer: Path | None, ignored: Warn | None
) -> str | None:
    """Return the chat template of the output; None: that of its tokenizer, if it has one.

    Args:
        recipe: the recipe.
        members: its checkpoints.
        tokenizer: the folder that the output's tokenizer comes from, or None.
        ignored: called with a line if the template has no effect; None: that is an error.

    Raises:
        CheckpointError: a tokenizer's configuration is damaged.
        WeightspaceError: there is no template of that name, or the text is no valid Jinja.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return None
    if "{" not in wanted and wanted not in (*TEMPLATES, "auto"):
        if wanted.endswith(_SUFFIXES) or os.path.isfile(wanted):
            raise WeightspaceError(
                f"chat_template {wanted[:100]!r} is a path, and paths are not read. Expected the text of the template "
                f"itself (chat_template: |), or one of {', '.join(('auto', *TEMPLATES))}."
            )
        raise unknown("chat_template", wanted[:100], ("auto", *TEMPLATES))
    if "{" in wanted and len(wanted) < _SHORTEST:
        raise WeightspaceError(f"chat_template {wanted!r} is too short for a Jinja template over the messages.")
    if "{" in wanted:
        check_syntax(wanted, "chat_template")
    if tokenizer is None or not any(is_tokenizer(path.name) for path in tokenizer.iterdir()):
        _without_effect("the output has no tokenizer that it could belong to", ignored)
        return None
    if wanted != "auto":
        return TEMPLATES.get(wanted, wanted)
    folders = {member.source: member.contents.path for member in members}
    order = dict.fromkeys((recipe.base, *recipe.models) if recipe.base else recipe.models)
    templates = [template for source in order if (template := read_template(folders[source])) is not None]
    if not templates:
        _without_effect("none of the models has one", ignored)
        return None
    return Counter(templates).most_common(1)[0][0]


def read_template(folder: Path) -> str | None:
    """Return the chat template of a model, as transformers reads it; None if it has none.

    Raises:
        CheckpointError: a file that may hold it is damaged.
    """
    if (folder / _FILE).is_file():
        with one_line_errors(folder / _FILE, "read"):
            return (folder / _FILE).read_text(encoding="utf-8", errors="replace").strip() or None
    for name in (_LEGACY, _CONFIG):
        template = read_optional_json_object(folder / name).get("chat_template")
        if isinstance(template, list):
            named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = named[0].get("template") if named else None
        if isinstance(template, str) and template.strip():
            return template.strip()
    return None


def write_template(folder: Path, template: str) -> None:
    """Write a template as the only one of a folder.

    Args:
        folder: a model's folder, with its tokenizer.
        template: Jinja source.

    Raises:
        CheckpointError: a configuration is damaged, or writing fails.
    """
    with one_line_errors(folder, "written"):
        (folder / _LEGACY).unlink(missing_ok=True)
        shutil.rmtree(folder / _FURTHER, ignore_errors=True)
        _replace(folder / _FILE, template)
        for name in (_CONFIG, "processor_config.json"):
            fields = read_optional_json_object(folder / name)
            if name == _CONFIG and fields:
                fields["chat_template"] = template
            elif fields.pop("chat_template", None) is None:
                continue
            _replace(folder / name, json_document(fields))


def _without_effect(reason: str, ignored: Warn | None) -> None:
    """Report that the key has no effect, or refuse it."""
    if ignored is None:
        raise WeightspaceError(f"chat_template has no effect: {reason}. Leave it out.")
    ignored(f"chat_template has no effect: {reason}.")


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with synced_file(path) as file:
        file.write(text.encode())
