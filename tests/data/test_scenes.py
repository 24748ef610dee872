"""The scenes are what their captions say, hold out what they promise, and the checker reads them back."""

from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFilter

from snowmelt.data.scenes.checker import judge, read_scene
from snowmelt.data.scenes.dataset import scenes
from snowmelt.data.scenes.drawing import COVERS, draw
from snowmelt.data.scenes.wording import WORDS, Prompt, describe, prompts
from snowmelt.data.scenes.world import (
    BACKGROUND,
    COLOURS,
    HELD_OUT_COLOURS,
    HELD_OUT_POSITIONS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw_scene,
)

RED_CIRCLE = Thing("circle", "red", SIZES["large"], 0.2, 0.5)
BLUE_SQUARE = Thing("square", "blue", SIZES["small"], 0.8, 0.5)
PAIR = Scene((RED_CIRCLE, BLUE_SQUARE), "left of")


def drawn(count: int, held_out: bool, seed: int = 0) -> list[tuple[Scene, Prompt]]:
    rng = np.random.default_rng(seed)
    found = [draw_scene(rng, held_out) for _ in range(count)]
    return [(scene, describe(scene, rng)) for scene in found]


def smaller(photo: np.ndarray, side: int = 32, blur: float = 0.0) -> np.ndarray:
    image = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)) if blur else image)


def wrong(photos: list[np.ndarray], claimed: list[Prompt]) -> int:
    verdicts = [judge(p, read_scene(x)) for p, x in zip(claimed, photos, strict=True)]
    return sum(not all(v.values()) for v in verdicts)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        (lambda x, rng: x, 0),
        (lambda x, rng: smaller(x), 1),
        (lambda x, rng: smaller(x, blur=0.8), 2),
        (lambda x, rng: (smaller(x, blur=0.5) + rng.normal(0, 15, (32, 32, 3))).clip(0, 255).astype(np.uint8), 2),
    ],
    ids=["as drawn", "32 pixels", "blurred", "blurred and noisy"],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_the_checker_reads_scenes(change, allowed, held_out):
    """200 scenes of each sort: above 99% right in all they claim."""
    pairs = drawn(200, held_out)
    rng = np.random.default_rng(1)
    assert wrong([change(draw(scene), rng) for scene, _ in pairs], [prompt for _, prompt in pairs]) <= allowed


def test_the_checker_measures():
    """Not only names: centres and radii, of the shape it recognises."""
    for scene, _ in drawn(100, False, seed=3):
        for made in scene.things:
            read = min(read_scene(draw(scene)), key=lambda t: (t.x - made.x) ** 2 + (t.y - made.y) ** 2)
            assert (read.shape, read.colour) == (made.shape, made.colour)
            assert (read.x, read.y) == pytest.approx((made.x, made.y), abs=0.01)
            assert read.radius == pytest.approx(made.radius, rel=0.06)


def test_nothing_to_see():
    claims = prompts(50, 0, False)
    blank = np.full((32, 32, 3), BACKGROUND, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    cloud = [np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(3))) for x in noise]
    assert read_scene(blank) == []
    assert not any(any(judge(p, []).values()) for p in claims)
    for photos in (list(noise), cloud, [np.full((32, 32, 3), 240, np.uint8)] * 50):
        assert wrong(photos, claims) == 50


def test_other_scenes_are_not_taken_for_the_one_claimed():
    pairs = drawn(300, False)
    shifted = [prompt for _, prompt in pairs[1:] + pairs[:1]]
    assert wrong([draw(scene) for scene, _ in pairs], shifted) > 290


def test_shades_that_were_never_drawn_are_no_colour():
    for shade in ((140, 140, 140), (130, 30, 30), (0, 200, 200)):
        photo = draw(Scene((RED_CIRCLE,))).astype(float)
        alpha = (photo[..., :1] - BACKGROUND[0]) / (COLOURS["red"][0] - BACKGROUND[0])
        (thing,) = read_scene(np.rint(BACKGROUND + alpha * (np.array(shade) - BACKGROUND)).astype(np.uint8))
        assert thing.colour is None


@pytest.mark.parametrize(
    ("scene", "lost"),
    [
        (PAIR, set()),
        (Scene((RED_CIRCLE,)), {"shape", "colour", "count", "relation"}),
        (Scene((Thing("circle", "red", 0.12, 0.8, 0.5), Thing("square", "blue", 0.12, 0.2, 0.5))), {"relation"}),
        (Scene((Thing("circle", "red", 0.12, 0.5, 0.2), Thing("square", "blue", 0.12, 0.5, 0.8))), {"relation"}),
        # The right shapes and colours, bound wrongly.
        (Scene((Thing("circle", "blue", 0.12, 0.2, 0.5), Thing("square", "red", 0.12, 0.8, 0.5))), {"relation"}),
        (Scene((*PAIR.things, Thing("square", "blue", 0.12, 0.8, 0.1))), {"count"}),
        (Scene((Thing("cross", "red", 0.12, 0.2, 0.5), BLUE_SQUARE)), {"shape", "relation"}),
    ],
)
def test_verdicts_on_a_pair(scene, lost):
    prompt = Prompt("a red circle left of a blue square", (("circle", "red"), ("square", "blue")), relation="left of")
    verdict = judge(prompt, read_scene(draw(scene)))
    assert set(verdict) == {"shape", "colour", "count", "relation"}
    assert {name for name, right in verdict.items() if not right} == lost


def test_verdicts_on_one():
    prompt = Prompt("", (("circle", "red"),), size="small", position="left")
    verdict = judge(prompt, read_scene(draw(Scene((RED_CIRCLE,)))))
    assert verdict == {"shape": True, "colour": True, "count": True, "size": False, "position": True}


def test_training_shows_no_held_out_combination():
    seen = [thing for scene, _ in drawn(3000, False) for thing in scene.things]
    colours, positions = {(t.shape, t.colour) for t in seen}, {(t.shape, t.position) for t in seen}
    assert colours == {(s, c) for s in SHAPES for c in COLOURS} - set(HELD_OUT_COLOURS.items())
    assert positions == {(s, p) for s in SHAPES for p in POSITIONS} - set(HELD_OUT_POSITIONS.items())
    assert all(scene.held_out for scene, _ in drawn(100, True))


def test_prompts_claim_what_is_held_out_or_what_is_seen():
    for prompt in prompts(300, 0, True):
        claims = [
            HELD_OUT_COLOURS[shape] == colour or HELD_OUT_POSITIONS[shape] == prompt.position
            for shape, colour in prompt.things
        ]
        assert any(claims), prompt
    for prompt in prompts(300, 0, False):
        assert all(HELD_OUT_COLOURS[s] != c and HELD_OUT_POSITIONS[s] != prompt.position for s, c in prompt.things)
    assert prompts(20, 0, True) == prompts(20, 0, True)
    assert prompts(20, 0, True) != prompts(20, 1, True)


def test_captions_say_what_is_claimed():
    pairs = drawn(2000, False)
    for scene, prompt in pairs:
        assert all(colour in prompt.text and shape in prompt.text for shape, colour in prompt.things)
        words = [word for word in WORDS[scene.things[0].size] if f" {word}" in prompt.text]
        assert bool(words) == bool(prompt.size)
        assert prompt.size in (None, scene.things[0].size)
        if prompt.position:
            assert prompt.position.replace("centre", "") in prompt.text
    kinds = Counter(len(s.things) if s.relation is None else "pair" for s, _ in pairs)
    assert {k: n / len(pairs) for k, n in kinds.items()} == pytest.approx(
        {1: 0.7, 2: 0.075, 3: 0.075, "pair": 0.15}, abs=0.05
    )
    assert len({p.text for _, p in pairs}) > 1200


def test_things_stay_apart_and_in_the_image():
    for scene, _ in drawn(500, False, seed=9):
        shapes = read_scene(draw(scene))
        assert len(shapes) == len(scene.things)
        for t in scene.things:
            assert 0.9 * t.radius < t.x < 1 - 0.9 * t.radius


def test_data_set(load):
    rows = scenes(count=60, side=32)
    assert rows.features == {"image": datasets.Image(), "text": datasets.Value("string")}
    assert rows[0]["image"].size == (32, 32)
    assert rows[0]["image"].mode == "RGB"
    assert rows["text"] == scenes(count=60, side=32)["text"]
    assert rows["text"] != scenes(count=60, side=32, seed=1)["text"]
    assert rows._fingerprint == scenes(count=60, side=32)._fingerprint
    # The set is the same for everybody, and from version to version.
    assert np.asarray(scenes(count=1)[0]["image"]).astype(int).sum() == 385351
    assert scenes(count=1)[0]["text"] == "2 green triangles"


def test_sides():
    """The same scene at twice the side is the same image, but for the edges."""
    for scene, _ in drawn(20, False):
        large = draw(scene, 64).reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert abs(large - draw(scene, 32)).mean() < 0.7


@pytest.mark.parametrize("shape", COVERS)
def test_areas(shape):
    """Shapes of one radius have comparable areas, and stay within their reach."""
    v = np.linspace(-1.2, 1.2, 1201)
    inside = COVERS[shape](v[None, :], v[:, None])
    assert 2 < inside.mean() * 2.4**2 < 3.2
    assert not inside[(abs(v) > 1.1)].any()
    assert not inside[:, (abs(v) > 1.1)].any()
