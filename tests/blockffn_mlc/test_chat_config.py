"""What an artifact takes over from the checkpoint's tokenizer."""

from blockffn_mlc.chat_config import copy_tokenizer


def test_a_chat_template_of_its_own_file_is_copied(tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    checkpoint.mkdir()
    out.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (checkpoint / name).write_text(name)
    copy_tokenizer(checkpoint, out)
    assert {path.name for path in out.iterdir()} == {"tokenizer.json", "chat_template.jinja"}
