"""Recipes: what is read, what is refused, and that every refusal is one line that names file and key."""

import dataclasses
import re
import sys

import pytest
import yaml

from mnv3.train import recipe as recipes
from mnv3.train.recipe import Recipe, load, make, parse_override


@pytest.fixture
def read(tmp_path):
    """Load a recipe of this text, after a line with the model."""

    def read(text, head="model: mnv3_small_cifar\n", **overrides):
        file = tmp_path / "mine.yaml"
        file.write_bytes(head.encode() + text if isinstance(text, bytes) else (head + text).encode())
        return load(file, **overrides)

    return read


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_of_the_package(name, read):
    recipe = load(name)
    assert read(recipe.to_yaml(), head="") == recipe
    assert recipe.model.startswith("mnv3_")
    assert load(recipes.FOLDER / f"{name}.yaml") == recipe
    assert "download" not in recipes.find(name).read_text().split("model:")[1], "nothing is downloaded unasked"


def test_defaults(read):
    assert read("") == Recipe(model="mnv3_small_cifar")
    with pytest.raises(dataclasses.FrozenInstanceError):
        read("").lr = 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E+4", 1e4), (".5e-2", 5e-3), ("5", 5.0), ("0.5", 0.5), ("1e4", 1e4), ("1.e1", 10), ("+2", 2)],
)
def test_numbers(read, text, value):
    lr = read(f"lr: {text}").lr
    assert lr == value
    assert type(lr) is float
    assert parse_override(f"lr={text}") == ("lr", value)


@pytest.mark.parametrize("text", ["0.001", "1e-3", "5", ".5", "1.5E+2", "-0.1"])
def test_numbers_in_quotation_marks(read, text):
    """They are meant as numbers where a number is wanted, and as text elsewhere."""
    assert read(f'min_lr: "{text.lstrip("-")}"').min_lr == float(text.lstrip("-"))
    assert parse_override(f'lr="{text}"') == ("lr", text)
    assert make({"model": "m", "weight_decay": text.lstrip("-")}).weight_decay == float(text.lstrip("-"))
    assert read(f'data: "{text}"\nteacher: "{text}"').teacher == text
    assert read("epochs: '12'\nclip: '1.5'").epochs == 12


@pytest.mark.parametrize(
    ("text", "meant"),
    [("010", 8), ("1:30", 90), ("10:00", 600), ("-017", -15), ("1:30.5", 90.5), ("0_7", 7), ("00", 0)],
)
@pytest.mark.parametrize("key", ["lr", "epochs", "seed", "data", "clip"])
def test_numbers_that_yaml_counts_by_eight_or_sixty(read, tmp_path, key, text, meant):
    problem = f"{text} is {meant} in YAML, which is hardly meant: write a decimal number"
    assert refusal(read, f"{key}: {text}").startswith(f"{tmp_path / 'mine.yaml'}, line 2: {problem}")
    assert refusal(parse_override, f"{key}={text}").startswith(f"--set {key}={text}: {problem}")
    assert "in YAML" in refusal(read, f"sizes: [8, {text}]")


def test_other_trainers_names_of_keys(read):
    for ours, others in recipes.OTHER_NAMES.items():
        assert ours in recipes.FIELDS
        for name in others.split():
            assert name not in recipes.FIELDS
            assert f"unknown key {name!r}. Did you mean {ours!r}? Allowed: model," in refusal(read, f"{name}: 1")
    names = " ".join(recipes.OTHER_NAMES.values()).split()
    assert len(set(names)) == len(names)
    for name, ours in {"learning_rate": "lr", "bs": "batch_size", "batch": "batch_size", "wd": "weight_decay"}.items():
        assert f"Did you mean {ours!r}?" in refusal(parse_then_make, f"{name}=1")
    assert "Did you mean 'epochs'?" in refusal(read, "Num-Epochs: 3")


def parse_then_make(text):
    return make({"model": "m"}, dict([parse_override(text)]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 20000}, "size: 20000 is not allowed: expected at most 4096 pixels"),
        ({"sizes": [20000, 32]}, "sizes: (20000, 32) is not allowed: expected at most 4096 pixels"),
        ({"size": 4096}, "batch_size: 128 is not allowed: expected at most 21 pictures of 4096 pixels"),
        ({"batch_size": 10**9}, "batch_size: 1000000000 is not allowed: expected at most 349525 pictures of 32 pixels"),
        ({"batch_size": 5000, "sizes": [400, 32]}, "expected at most 2236 pictures of 400 pixels"),
    ],
)
def test_more_pixels_than_a_machine_has_room_for(values, message):
    assert message in refusal(make, {"model": "m"} | values)
    make({"model": "m", "size": 4096, "batch_size": 21})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: '1e-3 '", "lr: expected a number, got '1e-3 ' (str)"),
        ("lr: '010'", "lr: expected a number, got '010' (str)"),
        ("lr: 08", "lr: expected a number, got '08' (str)"),
        ("lr: '1_0'", "lr: expected a number, got '1_0' (str)"),
        ("lr: 'nan'", "lr: expected a number, got 'nan' (str)"),
        ("epochs: '1.0'", "epochs: expected a whole number, got '1.0' (str)"),
        ("lr: true", "lr: expected a number, got True (bool)"),
        ("lr:", "lr: expected a number, got nothing"),
        ("lr: [1]", "lr: expected a number, got [1] (list)"),
        ("lr: 1" + 400 * "0", "lr: expected a number, got 1000"),
        ("epochs: true", "epochs: expected a whole number, got True (bool)"),
        ("epochs: 1.0", "epochs: expected a whole number, got 1.0 (float)"),
        ("epochs: 1e1", "epochs: expected a whole number, got 10.0 (float)"),
        ("flip: 1", "flip: expected true or false, got 1 (int)"),
        ("flip: no", "flip: expected true or false, got 'no' (str)"),
        ("flip: ~", "flip: expected true or false, got nothing"),
        ("data: false", "data: expected text, got False (bool)"),
        ("data: 10", "data: expected text, got 10 (int)"),
        ("data: 2001-01-01", "data: expected text, got datetime.date(2001, 1, 1) (date)"),
        ("teacher: [a]", "teacher: expected text or null, got ['a'] (list)"),
        ("clip: 'off'", "clip: expected a number or null, got 'off' (str)"),
        ("sizes: 32", "sizes: expected a list of whole numbers, got 32 (int)"),
        ("sizes: [16, 3.2e1]", "sizes: expected a list of whole numbers, got [16, 32.0] (list)"),
        ("sizes: [true]", "sizes: expected a list of whole numbers, got [True] (list)"),
        ("sizes: null", "sizes: expected a list of whole numbers, got nothing"),
        ("mean: [a, b, c]", "mean: expected a list of numbers or null, got ['a', 'b', 'c'] (list)"),
        ("mean: {r: 1}", "mean: expected a list of numbers or null, got {'r': 1} (dict)"),
    ],
)
def test_wrong_types(read, tmp_path, line, message):
    found = refusal(read, line)
    assert found.startswith(f"{tmp_path / 'mine.yaml'}: {message}")
    assert f"override: {message}" in refusal(read, "", **dict([parse_override(line.replace(":", "=", 1))]))


def test_values_of_every_type(read):
    text = "mean: [0, 0.5, 1e-1]\nstd: [1, 1, 1]\nsizes: [16, 32]\nclip: null\nteacher:\ncheckpoint: net\nflip: false"
    recipe = read(text)
    assert recipe.mean == (0.0, 0.5, 0.1)
    assert all(type(value) is float for value in recipe.mean + recipe.std)
    assert recipe.sizes == (16, 32)
    assert (recipe.clip, recipe.teacher, recipe.checkpoint, recipe.flip) == (None, None, "net", False)


@pytest.mark.parametrize("word", ["no", "No", "off", "yes", "on", "NO"])
def test_only_true_and_false_are_booleans(read, word):
    """YAML 1.1 has eleven words for each, and `precision: no` would be false."""
    assert parse_override(f"data={word}") == ("data", word)
    assert read(f"data: {word}").data == word
    assert f"download: expected true or false, got '{word}'" in refusal(read, f"download: {word}")


def test_precision_no(read):
    assert read("precision: no").precision == "no"
    assert parse_override("precision=no") == ("precision", "no")
    assert (read("flip: True").flip, read("flip: FALSE").flip) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", ": unknown key 'batchsize'. Did you mean 'batch_size'"),
        ("3: 3", ": unknown key 3. Allowed: model, pretrained,"),
        ("null: 3", ": unknown key None. Allowed: model,"),
        ("lr: 1\nepochs: 3\nlr: 1", ", line 4: key 'lr' is given twice"),
        ("[a, b]: 3", ", line 2: found unhashable key"),
        ("lr: [1", ", line 2: expected ',' or ']'"),
        ("\tlr: 1", ", line 2: found character '\\t'"),
        ("lr: @1", ", line 2: found character '@'"),
        ("data: 2001-13-45", ", line 2: '2001-13-45' is no valid timestamp (quotation marks make it text)"),
        ("epochs: !!int ten", ", line 2: 'ten' is no valid int"),
        ("epochs: !!int ''", ", line 2: '' is no valid int"),
        ("flip: !!bool ja", ", line 2: 'ja' is no valid bool"),
        ("data: !!timestamp ja", ", line 2: 'ja' is no valid timestamp"),
        ("data: !!map ja", ", line 2: expected a mapping node"),
        ("seed: " + 5000 * "1", ", line 2: '11111"),
        ("sizes: &a [*a]", ": sizes: expected a list of whole numbers, got [[[...]]] (list)"),
        ("data: " + 800 * "[", ": maximum recursion depth exceeded"),
        ("data: " + 800 * "[" + 800 * "]", ": maximum recursion depth exceeded"),
        ("---\nmodel: other", ", line 2: but found another document"),
        (b"data: \xff\xfe", ": 'utf-8' codec can't decode byte 0xff"),
        (b"data: a\0b", ": unacceptable character #x0000"),
    ],
)
def test_damaged_files(read, tmp_path, text, message):
    assert refusal(read, text).startswith(f"{tmp_path / 'mine.yaml'}{message}")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("# only a remark\n", "nothing"),
        ("- model: mnv3_small", "[{'model': 'mnv3_small'}] (list)"),
        ("mnv3_small", "'mnv3_small' (str)"),
        ("3", "3 (int)"),
        (b"\x89PNG\r\n\x1a\n", None),
    ],
)
def test_not_a_mapping(read, tmp_path, text, found):
    message = refusal(read, text, head="")
    assert message.startswith(str(tmp_path / "mine.yaml"))
    if found:
        assert message.endswith(f": expected lines of `key: value`, found {found}")


def test_nested_aliases_are_not_written_out(read):
    """Nine lines of them stand for 10**9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 9)]
    assert "unknown key 'a0'" in refusal(read, "\n".join(lines))
    lists = ["[&l0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"&l{i} [{', '.join(9 * [f'*l{i - 1}'])}]" for i in range(1, 9)]
    assert "sizes: expected a list of whole numbers, got [[" in refusal(read, f"sizes: {', '.join(lists)}]")


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:os.system", "tuple"])
def test_python_tags_make_nothing(read, tmp_path, tag):
    proof = tmp_path / "proof"
    for text in (f"data: !!python/{tag} ['touch {proof}']", f"? !!python/{tag} ['touch {proof}']\n: 1"):
        message = refusal(read, text)
        assert re.search(rf"mine\.yaml, line 2: could not determine a constructor for the tag .*python/{tag}", message)
    assert "could not determine" in refusal(parse_override, f"data=!!python/{tag} ['touch {proof}']")
    assert not proof.exists()


def test_byte_order_mark(read):
    assert read("model: mnv3_small\n", head="\ufeff").model == "mnv3_small"


RGB = "expected three numbers, for pixels from 0 to 1"
OUT_OF_RANGE = (  # keys, values that none of them may have, and what the message says
    ("epochs cycles batch_size accumulate size processes", (0, -5), "expected at least 1"),
    ("workers crop freeze_epochs mix_off_epochs seed", (-1,), "expected at least 0"),
    ("drop_rate drop_path val_fraction label_smoothing ema", (-0.1, 1, 1.5), "from 0 up to but not including 1"),
    ("erase mix_prob teacher_weight", (-0.1, 1.1), "expected a number from 0 to 1"),
    ("mixup cutmix momentum weight_decay warmup_epochs min_lr", (-0.1,), "expected a number of at least 0"),
    ("lr clip temperature layer_decay bn_momentum bn_eps", (0, -0.005), "expected a number above 0"),
    ("schedule augment clip_mode precision processes", ("other",), "Allowed: "),
    ("bn_momentum", (0.99,), "TensorFlow's 0.99 is 0.01 here"),
    ("sizes", ([16, 24], [0, 32]), "expected sizes of at least 1 pixel that end with size (32)"),
    ("mean std", ([0.5, 0.5], [0.5]), RGB),
    ("std", ([1, 0, 1],), "expected three numbers above 0"),
    ("scale", ([0.5], [0, 1], [0.5, 1.5], [0.8, 0.2]), "expected the least and the largest share"),
    ("warmup_epochs mix_off_epochs", (10,), "expected fewer than epochs (10)"),
    ("cycles", (2,), "expected epochs (10) to be a multiple of 3"),
    ("cycles", (10**4,), "expected at most 10"),
    ("processes", (3,), "batch_size (128) cannot be shared out among them"),
)


@pytest.mark.parametrize(("keys", "values", "expected"), OUT_OF_RANGE)
def test_ranges(keys, values, expected):
    for key in keys.split():
        for value in values:
            message = refusal(make, {"model": "m", key: value}, source="some.yaml")
            assert message.startswith(f"some.yaml: {key}: ")
            assert "is not allowed" in message
            assert expected in message


def test_every_number_has_a_range():
    tested = {key for keys, *_ in OUT_OF_RANGE for key in keys.split()}
    assert {key for key, field in recipes.FIELDS.items() if field.ranges or field.words} == tested
    assert all(field.ranges for field in recipes.FIELDS.values() if {int, float} & set(field.types))


def test_what_is_just_allowed():
    for values in (
        dict.fromkeys(("epochs", "cycles", "batch_size", "accumulate", "size"), 1) | {"workers": 0, "crop": 0},
        dict.fromkeys(("drop_rate", "drop_path", "ema", "mixup", "momentum", "warmup_epochs", "erase", "seed"), 0),
        dict.fromkeys(("drop_rate", "ema"), 0.9999) | {"teacher_weight": 1, "bn_momentum": 0.5, "mix_prob": 0},
        {"processes": "auto", "mixup": 1},
        {"processes": 64, "mixup": 1},
        {"scale": [1, 1], "sizes": [32], "warmup_epochs": 9.9, "mix_off_epochs": 9, "size": 32},
    ):
        make({"model": "m"} | values)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize("key", ["lr", "clip", "ema", "mixup", "mean"])
def test_numbers_that_are_not_finite(read, key, number):
    value = f"[0, {number}, 0]" if key == "mean" else number
    assert re.search(f"mine.yaml: {key}: .* is not allowed: expected a finite number", refusal(read, f"{key}: {value}"))


def test_two_starting_points(read):
    both = "pretrained: true\ncheckpoint: net"
    assert "pretrained and checkpoint both say where to start" in refusal(read, both)
    assert read(both, checkpoint=None).pretrained


def test_model_is_missing(read, tmp_path):
    assert refusal(read, "lr: 1", head="") == f"{tmp_path / 'mine.yaml'}: model is missing"
    assert read("lr: 1", head="", model="m").model == "m"
    with pytest.raises(TypeError, match="model"):
        Recipe()


def test_overrides(read):
    text = "sizes: [16, 32]\nlr: 1"
    assert read(text, lr=2, flip=False) == Recipe(model="mnv3_small_cifar", sizes=(16, 32), lr=2.0, flip=False)
    assert (read(text, size=64).size, read(text, size=64).sizes) == (64, ())
    assert read(text, size=64, sizes=[32, 64]).sizes == (32, 64)
    assert read(text, sizes=[]).sizes == ()
    assert "that end with size (32)" in refusal(read, text, sizes=[32, 64])
    assert refusal(read, text, larning_rate=2).startswith("override: unknown key 'larning_rate'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.05", ("lr", 0.05)),
        (" lr = 1e-2 ", ("lr", 0.01)),
        ("sizes=[16,32]", ("sizes", [16, 32])),
        ("sizes=[]", ("sizes", [])),
        ("teacher=null", ("teacher", None)),
        ("teacher=", ("teacher", None)),
        ("flip=false", ("flip", False)),
        ("data=/my pictures/a=b", ("data", "/my pictures/a=b")),
        ("data='1e3'", ("data", "1e3")),
        ("data=C:\\pictures", ("data", "C:\\pictures")),
        ("lr=-.5e-2", ("lr", -0.005)),
    ],
)
def test_parse_override(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "expected key=value, such as lr=0.05 or sizes=[16,32]"),
        ("", "expected key=value"),
        ("=3", "expected key=value"),
        (" =3", "expected key=value"),
        ("lr:3", "expected key=value"),
        ("sizes=[16", "expected ',' or ']'"),
        ("data=@", "found character '@'"),
        ("data={a: 1, a: 2}", "key 'a' is given twice"),
        ("data=2001-13-45", "is no valid timestamp"),
        ("data=\0", "unacceptable character #x0000"),
    ],
)
def test_bad_overrides(text, message):
    assert refusal(parse_override, text).startswith(f"--set {text}: ")
    assert message in refusal(parse_override, text)


def test_deeply_nested_override():
    with pytest.raises(ValueError, match=r"--set data=\[+: maximum recursion depth exceeded"):
        parse_override("data=" + 800 * "[")


@pytest.mark.parametrize(
    "text", ["no", "true", "1e3", "1e-3", ".5e3", "12", "null", "~", "ü ñ", "a: b", "# a", "=", " a "]
)
def test_round_trip(read, text):
    recipe = Recipe(model="m", data=text, precision="no", lr=1e-9, sizes=(8, 32), mean=(0.0, 1e-5, 1.0), clip=5e20)
    assert read(recipe.to_yaml(), head="") == recipe
    assert list(yaml.safe_load(recipe.to_yaml())) == list(recipes.FIELDS), "all keys are given, in order"


def test_find(tmp_path, monkeypatch):
    for name in recipes.names():
        assert recipes.find(name).stem == name
    with pytest.raises(ValueError, match="no recipe 'cifar10_smal': .* Did you mean 'cifar10_small'") as caught:
        recipes.find("cifar10_smal")
    assert all(name in str(caught.value) for name in recipes.names())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "recipe.txt").write_text("model: m")
    (tmp_path / "recipe.yml").write_text("model: m")
    for name in ("folder.yaml", tmp_path, "recipe.txt", "none.yaml", "", "../recipes/cifar10_small"):
        message = refusal(recipes.find, name)
        assert message.startswith(f"no recipe {str(name)!r}: no such .yaml file, none of the package. ")
    assert load("recipe.yml").model == "m"


def test_without_pyyaml(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    for call in (lambda: load("cifar10_small"), lambda: parse_override("lr=1"), Recipe(model="m").to_yaml):
        with pytest.raises(ImportError, match=r"recipes need PyYAML: pip install 'mnv3\[finetune\]'"):
            call()
    assert recipes.names(), "these need none"
