"""Names of classes in scripts that matplotlib's own font lacks."""

import warnings

import pytest

from mnv3.figures import charts, fonts, style


@pytest.fixture
def says(monkeypatch, caplog):
    """What is logged, with nothing said before."""
    monkeypatch.setattr(fonts, "_said", set())
    return lambda: [record.getMessage() for record in caplog.records if record.name == "mnv3.figures.fonts"]


def draw(name):
    return style.figure([style.Row(2, [lambda subfigure: subfigure.subplots().set_title(name) and None])])


def test_a_font_that_is_not_there_is_asked_for_once(monkeypatch, says, tmp_path):
    """Boxes without a word before (F2-21)."""
    monkeypatch.setattr(fonts, "_families", lambda: ["DejaVu Serif"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the command line does
        for _ in range(2):
            charts.confusion([[3, 1], [0, 4]], ["猫", "cat"], tmp_path / "x.png")
        charts.confusion([[3, 1], [0, 4]], ["猫", "ไทย\x1b"], tmp_path / "x.png")
    said = [message.partition(", which")[0] for message in says()]
    assert said == ["no installed font has 猫", "no installed font has ท ย ไ"]
    assert all("Noto Sans" in message and "\n" not in message for message in says())


def test_a_font_that_is_there_is_taken(says):
    """Whatever its name is."""
    has = fonts._characters("STIXGeneral") - fonts._characters(fonts.OWN)
    character = min(c for c in has if c.isprintable() and not "\ue000" <= c <= "\uf8ff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(f"class {character}")
    families = figure.axes[0]._left_title.get_fontfamily()
    assert families[0] == fonts.OWN
    assert any(character in fonts._characters(name) for name in families[1:])
    assert says() == []
    assert draw("plain").axes[0]._left_title.get_fontfamily() == [fonts.OWN]


def test_fonts_that_have_only_boxes_are_none():
    assert not any("Last Resort" in name or "Emoji" in name for name in fonts._families())
