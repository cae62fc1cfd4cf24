"""Chat templates of recipes: the built-in formats, that of most models, Jinja; read by transformers from the output."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files, verify_loading

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]

#: The same talk in the formats that models were trained on; the last message waits for an answer.
FORMATS = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s> [INST] Be kind.\n\nHi [/INST] Hello.</s> [INST] Bye [/INST]",
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello.\n\n### Instruction:\nBye\n\n### Response:\n",
    "exaone": (
        "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye\n[|assistant|]"
    ),
}

FIRST = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SECOND = "{% for message in messages %}{{ message['role'] }}{% endfor %}"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models ``a``, ``b``, ``c`` of one tokenizer without a template."""
    words = tokenizers.models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words),
        bos_token="<s>",
        eos_token="</s>",
    )
    for number, name in enumerate("abc"):
        ws.save_checkpoint({"model.embed_tokens.weight": torch.full((2, 2), float(number))}, tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(template: str | None, out: str = "out", base: str | None = None, **options: bool) -> tuple[str, ...]:
    recipe = {"merge_method": "linear", "models": [{"model": name} for name in "abc"], "base_model": base}
    Path("recipe.yml").write_text(json.dumps({**recipe, "chat_template": template}))
    return merge_files("recipe.yml", out, execution=ExecutionOptions(fsync=False), **options).warnings


def rendered(talk: list[dict[str, str]]) -> str:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained("out")
    return str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", FORMATS)
def test_a_built_in_template_gives_the_format_of_its_models(name: str, folders: Path) -> None:
    merge(name)
    assert rendered(TALK) == FORMATS[name]
    configuration = json.loads(Path("out/tokenizer_config.json").read_text())
    assert configuration["chat_template"] == Path("out/chat_template.jinja").read_text()


def test_without_a_system_message_the_formats_begin_with_the_user(folders: Path) -> None:
    starts = {
        "chatml": "<|im_start|>user\nHi",
        "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi",
        "mistral": "<s> [INST] Hi",
        "alpaca": "### Instruction:\nHi",
        "exaone": "[|system|][|endofturn|]\n[|user|]Hi",
    }
    for name, start in starts.items():
        merge(name)
        assert rendered(TALK[1:2]).startswith(start)


def test_mistral_takes_user_and_assistant_in_turn(folders: Path) -> None:
    merge("mistral")
    for talk in (TALK[2:], [*TALK, TALK[-1]], [{"role": "tool", "content": "x"}]):
        with pytest.raises(Exception, match="user and assistant in turn"):
            rendered(talk)


def test_a_template_in_jinja_is_written_as_it_is(folders: Path) -> None:
    merge(SECOND)
    assert Path("out/chat_template.jinja").read_text() == SECOND
    assert rendered(TALK) == "systemuserassistantuser"


def test_the_only_template_of_the_output_is_the_one_asked_for(folders: Path) -> None:
    Path("a/chat_template.json").write_text(json.dumps({"chat_template": FIRST}))
    Path("a/processor_config.json").write_text(json.dumps({"chat_template": FIRST, "patch": 2}))
    merge(SECOND)
    assert rendered(TALK) == "systemuserassistantuser"
    assert not Path("out/chat_template.json").exists()
    assert json.loads(Path("out/processor_config.json").read_text()) == {"patch": 2}


def test_without_the_key_the_template_of_the_base_stays(folders: Path) -> None:
    Path("a/chat_template.jinja").write_text(FIRST)
    assert merge(None) == ()
    assert Path("out/chat_template.jinja").read_text() == FIRST


@pytest.mark.parametrize("place", ["jinja", "config", "named", "legacy"])
def test_auto_takes_the_template_that_most_models_have_wherever_they_keep_it(place: str, folders: Path) -> None:
    Path("a/chat_template.jinja").write_text(FIRST)
    Path("b/chat_template.jinja").write_text(SECOND + "\n")
    named = [{"name": "tool_use", "template": FIRST}, {"name": "default", "template": SECOND}]
    if place == "jinja":
        Path("c/chat_template.jinja").write_text(SECOND)
    elif place == "legacy":
        Path("c/chat_template.json").write_text(json.dumps({"chat_template": SECOND}))
    else:
        fields = json.loads(Path("c/tokenizer_config.json").read_text())
        fields["chat_template"] = SECOND if place == "config" else named
        Path("c/tokenizer_config.json").write_text(json.dumps(fields))
    merge("auto")
    assert rendered(TALK) == "systemuserassistantuser"


def test_auto_takes_the_template_of_the_base_among_equals(folders: Path) -> None:
    Path("a/chat_template.jinja").write_text(FIRST)
    Path("c/chat_template.jinja").write_text(SECOND)
    merge("auto", base="c")
    assert rendered(TALK) == "systemuserassistantuser"


def test_a_template_that_nothing_can_hold_is_a_warning_or_an_error(folders: Path) -> None:
    (warning,) = merge("chatml", "out.safetensors")
    assert "chat_template has no effect: the output has no tokenizer" in warning
    assert [warning for warning in merge("auto") if "none of the models has one" in warning]
    shutil.rmtree("out")
    for name in "abc":
        for file in Path(name).glob("tokenizer*"):
            file.unlink()
    (warning,) = merge("chatml")
    assert "the output has no tokenizer" in warning
    assert not Path("out/chat_template.jinja").exists()
    with pytest.raises(WeightspaceError, match="chat_template has no effect"):
        merge("chatml", strict=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chatlm", "Unknown chat_template 'chatlm'.*Did you mean 'chatml'"),
        ("llama-3", "Did you mean 'llama3'"),
        ("{{ x }}", "too short for a Jinja template"),
        ("x" * 4000, r"Unknown chat_template '.{100}'"),
        ("mytemplate.jinja", "is a path, and paths are not read. Expected the text of the template itself"),
        ("a/config.json", "is a path, and paths are not read"),
        ("{{ messages[0].content }        ", "chat_template is not a valid Jinja template, line 1: unexpected"),
        ("{% for m in messages %}\n{{ m.content }}", "not a valid Jinja template, line 2: Unexpected end of template"),
        ("{{ messages[0].content | strip }}", "no filter named 'strip'"),
        ("{% if messages[0] is filled %}{% endif %}", "no test named 'filled'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_a_template_that_is_none_is_refused_with_what_there_is(template: str, message: str, folders: Path) -> None:
    with pytest.raises(WeightspaceError, match=message) as error:
        merge(template)
    assert len(str(error.value)) < 500
    assert not Path("out").exists()


def test_the_tags_of_transformers_are_parsed_and_nothing_is_run(folders: Path) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ raise_exception(strftime_now('%Y')) }}{% set x = 9 ** 9 ** 9 ** 9 %}"
    )
    merge(template)
    assert Path("out/chat_template.jinja").read_text() == template


def test_a_folder_whose_template_is_damaged_does_not_pass_verification(folders: Path) -> None:
    Path("a/chat_template.jinja").write_text("{% for message in messages %}")
    with pytest.raises(WeightspaceError, match="The chat template of a is not a valid Jinja template"):
        verify_loading("a")


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_damaged_configuration_is_one_line_before_anything_is_written(content: str, folders: Path) -> None:
    Path("b/tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is"):
        merge("auto")
    assert not Path("out").exists()


#: Template -> the special tokens that it spells out.
SPECIALS = {
    "alpaca": (),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "exaone": ("[|system|]", "[|endofturn|]", "[|assistant|]"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (),
    "{# <|not_used|> #}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}<|end|>{% endfor %}": (
        "<|end|>",
    ),
}


def add_tokens(*tokens: str) -> None:
    """Give the tokenizers of all models further tokens."""
    for name in "abc":
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(name)
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        tokenizer.save_pretrained(name)


@pytest.mark.parametrize("template", SPECIALS)
def test_a_template_whose_tokens_the_tokenizer_lacks_is_reported(template: str, folders: Path) -> None:
    lines = [line for line in merge(template) if "chat_template uses" in line]
    assert len(lines) == bool(SPECIALS[template])
    for line in lines:
        listed = ", ".join(map(repr, SPECIALS[template]))
        assert f"chat_template uses {listed}, which the output's tokenizer does not have" in line
        assert "`tokenizer.tokens`" in line


def test_an_end_of_turn_that_does_not_end_the_text_is_reported(folders: Path) -> None:
    add_tokens("<|im_start|>", "<|im_end|>")
    (line,) = merge("chatml")
    assert "ends turns with '<|im_end|>', but eos_token is '</s>'" in line
    Path("a/generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    assert merge("chatml") == ()
    Path("a/generation_config.json").write_text('{"eos_token_id": 1}')
    assert len(merge("chatml")) == 1
    for name in "abc":
        configuration = json.loads(Path(name, "tokenizer_config.json").read_text())
        Path(name, "tokenizer_config.json").write_text(json.dumps({**configuration, "eos_token": "<|im_end|>"}))
    assert merge("chatml") == ()


def test_tokens_that_the_recipe_adds_are_those_of_the_output(folders: Path) -> None:
    Path("recipe.yml").write_text(
        json.dumps(
            {
                "merge_method": "linear",
                "models": [{"model": name} for name in "abc"],
                "base_model": "a",
                "parameters": {"weight": 1},
                "chat_template": "chatml",
                "tokenizer": {"source": "base", "tokens": {token: {} for token in SPECIALS["chatml"]}},
            }
        )
    )
    lines = merge_files("recipe.yml", "out", execution=ExecutionOptions(fsync=False)).warnings
    assert not [line for line in lines if "chat_template uses" in line]
    assert [line for line in lines if "ends turns with '<|im_end|>'" in line]
