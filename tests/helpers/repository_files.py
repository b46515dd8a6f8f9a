"""A repository's files without torch: real configs and preprocessor, empty models. No server can load it."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from diptych_serving import metering, preprocessing
from diptych_serving.repository.layout import MANIFEST_FILE, sha256

SOURCE = Path(__file__).parents[2] / "model_repository"
LABELS = ["animals", "food", "tools"]
SPEC = preprocessing.PreprocessingSpec(image_size_px=32, max_tokens=8)
MODELS = ("image_encoder", "text_encoder", "fusion_head")


def lay_out_repository(to: Path, **manifest: object) -> Path:
    """Write version 1 of every model under `to`, which must not exist yet.

    manifest  more of what the manifest says, such as the target
    """
    shutil.copytree(SOURCE, to)
    for model in to.iterdir():
        (model / "1").mkdir()
    for model in ("classifier", "tally"):
        (to / model / "1/labels.txt").write_text("".join(f"{label}\n" for label in LABELS))

    version = to / "preprocess/1"
    for step in ("preprocess", "tally"):
        (to / step / "model.py").rename(to / step / "1/model.py")
        shutil.copy(metering.__file__, to / step / "1/metering.py")
    preprocessing.save_snapshot(version)
    preprocessing.Preprocessor(SPEC, tiny_tokenizer().to_str()).save(version)

    for name in MODELS:
        (to / name / "1/model.pt").write_bytes(b"a model of " + name.encode())
    write_manifest(to, **manifest)
    return to


def write_manifest(repository: Path, **more: object) -> None:
    """Version 1's, as far as serving reads it: the checksums of all that is there now."""
    path = repository / "classifier/1" / MANIFEST_FILE
    path.unlink(missing_ok=True)
    files = sorted(file for file in repository.rglob("*") if file.is_file())
    checksums = {str(file.relative_to(repository)): sha256(file) for file in files}
    path.write_text(json.dumps({"version": 1, "labels": LABELS, "sha256": checksums, **more}))


def tiny_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "cat", "cake", "hammer"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer
