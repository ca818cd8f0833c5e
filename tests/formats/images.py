"""Images in rows, and images with classes: what is read, and what is refused."""

from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.classifier.class_names import read_class_names
from mmalign.classifier.labeled_images import load_labeled_images
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from tests.formats.form import Form, Section
from tests.odd_images import encode, tagged

RED = encode(Image.new("RGB", (6, 4), (200, 0, 0)))
CLEAR = encode(Image.new("RGBA", (6, 4), (200, 0, 0, 0)))
DEEP = encode(Image.new("I;16", (6, 4), 257 * 100))
WORDNET = ("n01440764", "n01443537")


def read_images(path: Path) -> list[tuple[tuple[int, int], Any]]:
    """Width and height, and the first pixel, of each image of the first row."""
    row = read_pair(load_rows(path)[0], index=0, image_root=path.parent)
    return [(image.size, image.getpixel((0, 0))) for image in row.images]


def read_tree(path: Path) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The classes, and id and class of each image, of the training split of a folder that holds the files that ``path`` lists."""
    root = path.parent / "data"
    for name in path.read_text(encoding="utf-8").split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(RED)
    return read_labels(root)


def read_labels(source: Path) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The same of any source."""
    found = load_labeled_images(source)
    return found.classes, [(name, found.classes[label]) for name, label in zip(found.ids, found.labels, strict=True)]


def read_names(path: Path) -> tuple[str, ...]:
    """What the classes are called."""
    return read_class_names(path, WORDNET)


def row(images: str, **beside: bytes) -> dict[str, Any]:
    """What the forms of image values share: a row, and files beside it."""
    text = f'{{{images},\n "prompt": "What is it?",\n "chosen": "A red square.",\n "rejected": "A cat."}}'.replace("\n", "")
    return {"file": "pairs.jsonl", "text": text + "\n", "read": read_images, "beside": {f"{k}.png": v for k, v in beside.items()}}


VALUES = Section(
    "Image values",
    "`images` is a list, `image` a single value. Paths start from `--image-root` and may not leave it. Every command decodes alike: "
    "the first frame, upright by its tag, what is transparent on white, 16 and 32 bits scaled to 8.",
    (
        Form("A path", **row('"image": "a.png"', a=RED), expected=[((6, 4), (200, 0, 0))]),
        Form(
            "Several paths", **row('"images": ["a.png", "b.png"]', a=RED, b=CLEAR), expected=[((6, 4), (200, 0, 0)), ((6, 4), (255,) * 3)]
        ),
        Form(
            "The mapping of datasets",
            **row('"images": [{"path": "a.png", "bytes": null}]', a=RED),
            expected=[((6, 4), (200, 0, 0))],
            note="In Parquet `bytes` holds the file; it comes before the path. Base64 is read as well, with `data:image/png;base64,` in "
            "front or as it is, and so are `file:` addresses.",
        ),
        Form(
            "A photo that lies on its side",
            **row('"images": ["a.png"]', a=tagged(6)),
            expected=[((8, 12), (215, 217, 130))],
            note="Stored as 12 x 8 pixels with an orientation tag, as phones do.",
        ),
        Form(
            "16 bits",
            **row('"images": ["a.png"]', a=DEEP),
            expected=[((6, 4), (100, 100, 100))],
            note="16-bit values are divided by 257. Of 32-bit values and floats the smallest of 1 (floats alone), 255 and 65535 that holds "
            "all is white; where one is negative or larger, the image's own range is stretched.",
        ),
        Form("A path out of the root", **row('"images": ["../a.png"]'), refused="leaves the image root"),
        Form("A file that is not there", **row('"images": ["a.png"]'), refused="image not found"),
        Form(
            "A page under a picture's name",
            **row('"images": ["a.png"]', a=b"<!DOCTYPE html><title>404</title>"),
            refused="is not an image that Pillow can read; it looks like an HTML page",
        ),
    ),
)

TREE = {"file": "files.txt", "read": read_tree}
FOLDERS = Section(
    "Labelled images",
    "What the `classifier` commands read from `--data`, beside Parquet and `save_to_disk` with an Image and a ClassLabel. "
    "Each listing is of files below `--data`.",
    (
        Form(
            "A folder for each class",
            **TREE,
            text="cat/0.jpg\ncat/more/1.tif\ndog/0.png\n",
            expected=(("cat", "dog"), [("cat/0.jpg", "cat"), ("cat/more/1.tif", "cat"), ("dog/0.png", "dog")]),
            note="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF and JPEG 2000; other files are counted aloud.",
        ),
        Form(
            "Folders of splits above them",
            **TREE,
            text="Training/cat/0.png\nTraining/dog/0.png\nTesting/cat/0.png\nval_images/cat/0.png\n",
            expected=(("cat", "dog"), [("cat/0.png", "cat"), ("dog/0.png", "dog")]),
            note="train, validation and test in any spelling; of `eval` you say what it is, by naming the folder itself.",
        ),
        Form(
            "Hidden folders",
            **TREE,
            text="train/cat/0.png\ntrain/dog/0.png\ntrain/.ipynb_checkpoints/0.png\n__MACOSX/train/cat/0.png\n",
            expected=(("cat", "dog"), [("cat/0.png", "cat"), ("dog/0.png", "dog")]),
            note="They are no classes.",
        ),
        Form(
            "CoOp's split file",
            "split.json",
            '{"train": [["cat/0.png", 0, "cat"], ["dog/0.png", 1, "dog"]],\n "val": [["cat/1.png", 0, "cat"]],\n'
            ' "test": [["dog/1.png", 1, "dog"]]}\n',
            read_labels,
            expected=(("cat", "dog"), [("cat/0.png", "cat"), ("dog/0.png", "dog")]),
        ),
        Form("Splits without classes", **TREE, text="train/0.png\ntest/0.png\n", refused="hold images without a folder for each class"),
        Form(
            "Another folder around",
            **TREE,
            text="archive/cat/0.png\narchive/dog/0.png\n",
            refused="has the one folder archive, which holds folders; name the folder whose folders are classes",
        ),
        Form("No training split", **TREE, text="test/cat/0.png\neval/cat/0.png\n", refused="has eval, test and nothing for split 'train'"),
    ),
)

NAMES = Section(
    "Names of classes",
    "`--class-names FILE` says what a text tower's prompts call classes whose names are WordNet ids or numbers.",
    (
        Form("Lines", "classnames.txt", "n01440764 tench\nn01443537 goldfish\n", read_names, expected=("tench", "goldfish")),
        Form(
            "Names alone",
            "names.txt",
            "tench\ngoldfish\n",
            read_names,
            expected=("tench", "goldfish"),
            note="In the classes' order; not for folders called by numbers that are out of order, as 1, 10, 2 are.",
        ),
        Form(
            "Numbered names",
            "names.txt",
            "0 tench\n1 goldfish\n",
            read_names,
            expected=("tench", "goldfish"),
            note="From 0 or 1, in the classes' order; also in CSV and JSON, and as Python prints a dictionary.",
        ),
        Form("CSV", "names.csv", 'class,name\nn01440764,"tench"\nn01443537,"goldfish"\n', read_names, expected=("tench", "goldfish")),
        Form("JSON", "names.json", '{"n01440764": "tench",\n "n01443537": "goldfish"}\n', read_names, expected=("tench", "goldfish")),
        Form(
            "ImageNet's index",
            "imagenet_class_index.json",
            '{"0": ["n01440764", "tench"],\n "1": ["n01443537", "goldfish"]}\n',
            read_names,
            expected=("tench", "goldfish"),
        ),
        Form("A class without a name", "classnames.txt", "n01440764 tench\n", read_names, refused="has no name for n01443537 (1)"),
    ),
)

SECTIONS: tuple[Section, ...] = (VALUES, FOLDERS, NAMES)
