"""Charts: everything is inside the picture, escaped, and described."""

import math
import re

import pytest

from app.charts import Series, histogram, line_chart, plain


def places(chart):
    return [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', chart)[1].split()]


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "y", [[1.0, 5.0, 3.0], [7.0, 7.0], [1e-6, 1e9], [3.0], [0.999, 1.0], [5e5, 5e5 + 1], [12.0] * 4]
)
def test_lines_stay_inside(y, log_y):
    chart = line_chart("t", [Series("s", range(1, len(y) + 1), y)], log_y=log_y)
    for across, down in places(chart):
        assert -0.01 <= across <= 100.01 and -0.01 <= down <= 100.01
    ticks = re.findall(r'<span style="bottom:([-\d.]+)%', chart)
    assert ticks and all(-0.01 <= float(tick) <= 100.01 for tick in ticks)


def test_higher_values_are_higher_up():
    points = places(line_chart("t", [Series("s", [0, 1, 2], [1.0, 10.0, 100.0])], log_y=True))
    assert points[0][1] > points[1][1] > points[2][1]
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.1)


def test_what_cannot_be_drawn_is_left_out():
    values = [math.nan, 2.0, math.inf, 0.0, 3.0]
    assert len(places(line_chart("t", [Series("s", range(5), values)], log_y=True))) == 2
    for nothing in ([], [Series("s", [], [])], [Series("s", [1], [math.nan])]):
        assert "nothing measured yet" in line_chart("t", nothing)


def test_names_are_escaped_and_the_picture_is_described():
    chart = line_chart("<t>", [Series("<b>", [1], [1.0])], points=True)
    assert "<b>1" not in chart.replace("<b>1</b>", "") and "&lt;b&gt;" in chart
    assert 'role="img"' in chart and 'aria-label="&lt;t&gt;"' in chart


def test_histogram_shows_small_counts_and_none():
    chart = histogram("labels", [(0, 0, 0), (1, 1, 1), (2, 3, 1_000_000)], "times", "labels", log_y=True)
    heights = [float(height) for height in re.findall(r"height:([\d.]+)%", chart)]
    assert heights[0] == 0 and 0 < heights[1] < heights[2] <= 100
    assert "2 to 3: 1,000,000 labels" in chart
    assert "nothing to count" in histogram("labels", [], "times", "labels")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1200, "1,200"), (2.5e6, "2.5M"), (3e9, "3G"), (0.25, "0.25"), (1e-5, "1e-05")]
)
def test_numbers_on_an_axis(value, text):
    assert plain(value) == text


def test_steps_are_whole_numbers():
    chart = line_chart("t", [Series("s", [1, 2, 3], [0.1, 0.2, 0.3])])
    below = chart[chart.index('<div class="x">') :]
    assert re.findall(r">([\d.]+)</span>", below) == ["1", "2", "3"]
