"""The server answers the page and nobody else, and what the page sends becomes what the next round reads."""

import dataclasses
import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "flaresemi[review]"')

from flaresemi.errors import ConfigError, SelectionError
from flaresemi.geometry import Geometry
from flaresemi.io.images import read_grid, read_label_map, write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import Stage
from flaresemi.review.serving import kept_token, serve
from flaresemi.review.wire import box_bytes, packed, read_box, unpacked, world_ras_mm
from tests.review.made_client import TOKEN, Client, serving
from tests.review.made_review import MadeReview

CASE = "phantom_0004"


@pytest.fixture
def client(made: MadeReview) -> Iterator[Client]:
    with serving(made) as asks:
        yield asks


def page(client: Client) -> dict[str, str]:
    return {"origin": client.origin, "x-flaresemi": "1"}


def ask(client: Client, name: str, **words: object) -> object:
    answer = client.get(f"/{TOKEN}/api/{name}", params=words)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tell(client: Client, name: str, said: dict, label: bytes | None = None, **words: object):
    body = json.dumps({"tab": "tab 1", "who": "Ann"} | said).encode()
    return client.post(
        f"/{TOKEN}/api/{name}",
        params=words,
        headers=page(client),
        content=body if label is None else body + b"\n" + label,
    )


def test_strangers_get_nowhere(client: Client) -> None:
    good = f"/{TOKEN}/api/state"
    assert client.get(good).status_code == 200
    for path in (
        "/",
        "/api/state",
        "/wrong/api/state",
        f"/{TOKEN}",
        f"//{TOKEN}/api/state",
        f"/{TOKEN[:-1]}/api/state",
    ):
        assert client.get(path).status_code == 401
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1:8650"):
        assert client.get(good, headers={"host": host}).status_code == 421
    for host in ("localhost:9000", "127.0.0.1", "[::1]:8650"):  # behind a tunnel the port is another one
        assert client.get(good, headers={"host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999"):
        assert client.get(good, headers={"origin": origin}).status_code == 403
    assert client.get(good, headers={"sec-fetch-site": "cross-site"}).status_code == 401
    claim = json.dumps({"id": CASE, "tab": "x", "who": "Eve"})
    for headers in ({}, {"x-flaresemi": "1"}, {"origin": client.origin}):
        assert client.post(f"/{TOKEN}/api/claim", headers=headers, content=claim).status_code == 401
    assert client.post(f"/{TOKEN}/api/claim", headers=page(client), content=claim).status_code == 200
    assert client.ask("DELETE", good, headers=page(client)).status_code == 405


def test_what_every_answer_says(client: Client) -> None:
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    for name in (
        "page.css",
        "page.js",
        "viewer.js",
        "volume.js",
        "labels.js",
        "planes.js",
        "rendering.js",
        "niivue.js",
        "niivue.txt",
    ):
        assert client.get(f"/{TOKEN}/{name}").status_code == 200
    assert client.get(f"/{TOKEN}/server.py").status_code == 404


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "/etc/passwd", "phantom_0002\x00", ""]
)
def test_no_name_of_the_page_becomes_a_path(client: Client, name: str) -> None:
    for what in ("case", "voxels", "label"):
        answer = client.get(f"/{TOKEN}/api/{what}", params={"id": name})
        assert answer.status_code == 400
        assert "no case" in answer.json()["what"]
    answer = tell(client, "decision", {"revision": 0, "looked_at": "", "rejected": ["liver"]}, id=name)
    assert answer.status_code == 400
    for path in (f"/{TOKEN}/../secret", f"/{TOKEN}/%2e%2e/page.js", f"/{TOKEN}/pages/page.js"):
        assert client.get(path).status_code == 404


def test_image_and_label_map_lie_on_each_other_as_in_the_file(client: Client, made: MadeReview) -> None:
    original = nibabel.as_closest_canonical(nibabel.load(made.material().unlabeled[CASE].images[0]))
    voxels = np.asarray(original.dataobj)
    facts = ask(client, "case", id=CASE)
    assert tuple(facts["shape"]) == voxels.shape
    assert np.allclose(facts["world"], original.affine[:3], atol=1e-3)
    x, y, z = voxels.shape
    for box in ((0, x, 0, y, 0, z), (0, x, 0, y, 7, 8), (3, 4, 0, y, 0, z), (2, 5, 9, 11, 4, 6)):
        answer = client.get(f"/{TOKEN}/api/voxels", params={"id": CASE, "box": ",".join(map(str, box))})
        assert answer.headers["x-voxels"] == "int16"
        x0, x1, y0, y1, z0, z1 = box
        found = np.frombuffer(answer.content, "<i2").reshape(z1 - z0, y1 - y0, x1 - x0).T
        assert np.array_equal(found, voxels[x0:x1, y0:y1, z0:z1])
    low, high = map(float, answer.headers["x-window"].split(","))
    assert voxels.min() <= low < high <= voxels.max()
    answer = client.get(f"/{TOKEN}/api/label", params={"id": CASE})
    assert len(answer.content) == voxels.size  # unpacked
    assert answer.headers["x-label-hash"] == facts["label_hash"]
    assert client.get(f"/{TOKEN}/api/label", params={"id": CASE, "which": "reviewed"}).status_code == 204
    assert client.get(f"/{TOKEN}/api/label", params={"id": CASE, "which": "../x"}).status_code == 400


def test_no_box_but_one_of_the_image_is_answered(client: Client) -> None:
    x, y, z = ask(client, "case", id=CASE)["shape"]
    whole = f"0,{x},0,{y},0,{z}"
    for words in (
        {},
        {"box": ""},
        {"box": "0,1,0,1,0"},
        {"box": "0,1,0,1,0,1,0,1"},
        {"box": f"0,{x + 1},0,{y},0,{z}"},
        {"box": f"0,{x},0,{y},{z},{z + 1}"},
        {"box": "1,1,0,1,0,1"},
        {"box": "2,1,0,1,0,1"},
        {"box": "-1,1,0,1,0,1"},
        {"box": "0,1,0,1,0,1e9"},
        {"box": "0,1,0,1,0,٣"},
        {"box": "0,1,0,1,0," + "9" * 5000},
        {"box": whole, "channel": "7"},
        {"box": whole, "channel": "-1"},
        {"box": whole, "channel": "²"},
        {"box": whole, "channel": "9" * 5000},
        {"box": whole, "id": "../../../etc/passwd"},
    ):
        answer = client.get(f"/{TOKEN}/api/voxels", params={"id": CASE} | words)
        assert answer.status_code == 400, words
        assert answer.json()["what"]
    for path, headers in (("/api/voxels", {}), (f"/{TOKEN}/api/voxels", {"origin": "http://evil.example"})):
        answer = client.get(path, params={"id": CASE, "box": whole}, headers=headers)
        assert answer.status_code in (401, 403)
    assert client.post(f"/{TOKEN}/api/voxels", headers=page(client), content=b"{}").status_code == 405
    assert client.get(f"/{TOKEN}/api/image", params={"id": CASE}).status_code == 404


def test_a_correction_arrives_voxel_by_voxel(client: Client, made: MadeReview) -> None:
    material = made.material()
    facts = ask(client, "case", id=CASE)
    x, y, z = facts["shape"]
    drawn = np.zeros((z, y, x), np.uint8)
    drawn[3, 5, 7] = 2
    said = {"revision": 0, "looked_at": facts["label_hash"], "corrected": ["right kidney"], "slices": [[2, 5]]}
    answer = tell(client, "decision", said, gzip.compress(drawn.tobytes()), id=CASE)
    assert answer.status_code == 200, answer.text
    review = material.review(CASE)
    assert (review.by, review.corrected, review.slices) == ("Ann", ("right kidney",), ((2, 5),))
    stored = material.label_map(material.unlabeled[CASE], "reviewed", 2).indices_zyx
    assert np.argwhere(stored).tolist() == [[3, y - 1 - 5, x - 1 - 7]]
    again = client.get(f"/{TOKEN}/api/label", params={"id": CASE, "which": "reviewed"}).content
    assert again == drawn.tobytes()
    item = next(each for each in ask(client, "queue")["items"] if each["id"] == CASE)
    assert item["review"]["by"] == "Ann"
    assert item["open"] == "Ann"
    assert tell(client, "take-back", {"id": CASE, "revision": 1}).status_code == 200
    assert material.review(CASE) is None


def test_an_image_that_was_exchanged_is_not_recorded_as_the_one_that_was_seen(
    kept: MadeReview, made: MadeReview, tmp_path: Path
) -> None:
    own = dataclasses.replace(made, dataset=shutil.copytree(kept.dataset, tmp_path / "data"))
    material = own.material()
    path = material.unlabeled[CASE].images[0]
    with serving(own) as client:
        facts = ask(client, "case", id=CASE)
        path.touch()  # another time alone is no other image
        said = {"revision": 0, "looked_at": facts["label_hash"], "image": facts["image"], "rejected": ["liver"]}
        review = tell(client, "decision", said, id=CASE).json()
        assert (review["revision"], review["image"]) == (1, facts["image"])
        write_label_map(path, read_label_map(path).array_zyx[::-1], read_grid(path))
        answer = tell(client, "decision", said | {"revision": 1}, id=CASE)
        assert (answer.status_code, "exchanged meanwhile" in answer.json()["what"]) == (409, True)
        seen = ask(client, "case", id=CASE)["image"]
        assert seen not in ("", facts["image"])
        assert tell(client, "decision", said | {"revision": 1, "image": seen}, id=CASE).status_code == 200
    assert (material.review(CASE).revision, material.review(CASE).image) == (2, seen)


def test_what_is_wrong_is_refused_in_words(client: Client) -> None:
    facts = ask(client, "case", id=CASE)
    said = {"revision": 0, "looked_at": facts["label_hash"], "corrected": ["liver"]}
    voxels = int(np.prod(facts["shape"]))
    for label, status, told in (
        (gzip.compress(bytes(voxels + 1)), 400, "has not the"),
        (gzip.compress(bytes(10)), 400, "has not the"),
        (gzip.compress(bytes(voxels))[:-9], 400, "has not the"),
        (b"no gzip", 400, "no compressed label map"),
        (gzip.compress(bytes([200]) * voxels), 400, "value 200"),
        (b"x" * (voxels + 70_000), 413, "more was sent"),
        (gzip.compress(bytes(200 * voxels)), 400, "has not the"),  # a bomb is not unpacked
    ):
        answer = tell(client, "decision", said, label, id=CASE)
        assert (answer.status_code, told in answer.json()["what"]) == (status, True), answer.text
    for wrong, told in (
        ({"who": " "}, "nobody is named"),
        ({"corrected": "liver"}, "list of names"),
        ({"revision": "0"}, "must be a number"),
        ({"slices": [[1]]}, "pairs of numbers"),
        ({"corrected": [], "accepted": []}, "nothing is decided"),
        ({"corrected": ["lver"]}, "not: lver"),
    ):
        answer = tell(client, "decision", said | wrong, gzip.compress(bytes(voxels)), id=CASE)
        assert (answer.status_code, told in answer.json()["what"]) == (400, True), answer.text
    for body in (b"", b"[]", b"{", b"\xff"):
        assert client.post(f"/{TOKEN}/api/claim", headers=page(client), content=body).status_code == 400
    assert client.post(f"/{TOKEN}/api/claim", headers=page(client), content=b" " * 70_000).status_code == 413


def test_the_second_tab_can_only_look(client: Client) -> None:
    assert tell(client, "claim", {"id": CASE}).json() == {"granted": True, "by": None}
    other = {"tab": "tab 2", "who": "Bob"}
    assert tell(client, "claim", {"id": CASE} | other).json() == {"granted": False, "by": "Ann"}
    facts = ask(client, "case", id=CASE)
    said = {"revision": 0, "looked_at": facts["label_hash"], "rejected": ["liver"]}
    answer = tell(client, "decision", said | other, id=CASE)
    assert answer.status_code == 409
    assert "Ann has case" in answer.json()["what"]
    assert tell(client, "release", {}).status_code == 200
    assert tell(client, "decision", said | other, id=CASE).status_code == 200
    assert tell(client, "decision", said, id=CASE).status_code == 409  # Bob has it now, and has decided


def test_two_tabs_that_save_at_once_do_not_replace_each_other(client: Client, made: MadeReview) -> None:
    said = {"revision": 0, "looked_at": ask(client, "case", id=CASE)["label_hash"], "rejected": ["liver"]}
    answers = []

    def save() -> None:
        answers.append(tell(client, "decision", said, id=CASE).status_code)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409, 409, 409]
    assert made.material().review(CASE).revision == 1


def test_held_out_cases_are_shown_and_never_changed(client: Client, made: MadeReview) -> None:
    held_out = next(iter(made.material().held_out))
    assert ask(client, "case", id=held_out)["group"] == "held out"
    assert client.get(f"/{TOKEN}/api/label", params={"id": held_out, "which": "real"}).status_code == 200
    # Of what validations left behind, the newest and the one before.
    material = made.material()
    case = material.held_out[held_out]
    assert material.label_map(case, "newest", 2) is None
    for number in (0, 1):
        drawn = np.full(read_grid(case.images[0]).canonical.shape_zyx, number + 1, np.uint8)
        folder = made.workspace.round_model("0", number, Stage.FINE).validation
        write_label_map(folder / f"{held_out}.nii.gz", drawn, read_grid(case.images[0]))
    seen = [material.label_map(case, which, 2).indices_zyx.max() for which in ("newest", "former")]
    assert seen == [2, 1]
    assert ask(client, "case", id=held_out)["round"] == 1
    answer = tell(client, "decision", {"revision": 0, "looked_at": "", "rejected": ["liver"]}, id=held_out)
    assert answer.status_code == 400
    assert "no unlabeled case" in answer.json()["what"]


def test_there_and_back_in_any_orientation() -> None:
    turned = (0.0, 1.0, 0.0, -0.8, 0.0, -0.6, -0.6, 0.0, 0.8)
    geometry = Geometry(shape_zyx=(3, 4, 5), spacing_zyx_mm=(3.0, 2.0, 1.0), origin_xyz_mm=(7.0, -3.0, 9.0))
    label = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    assert np.array_equal(unpacked(packed(label), (3, 4, 5), 3), label)
    with pytest.raises(SelectionError):
        unpacked(packed(label), (3, 4, 5), 2)
    for direction in (geometry.direction, turned):
        grid = Geometry(**{**{name: getattr(geometry, name) for name in geometry.__slots__}, "direction": direction})
        world = np.array(world_ras_mm(grid))
        for index in ((0, 0, 0), (2, 1, 4)):
            z, y, x = index
            lps = grid.world_xyz_mm(index)
            assert np.allclose(world @ [4 - x, 3 - y, z, 1], [-lps[0], -lps[1], lps[2]], atol=1e-4)
            box = f"{4 - x},{5 - x},{3 - y},{4 - y},{z},{z + 1}"
            assert box_bytes(label, read_box(box, label.shape)) == label[index].tobytes()


def test_the_address_outlives_the_server_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".review-token"
    token = kept_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept_token(path) == token  # a page that is open outlives its server
    path.chmod(0o644)
    assert kept_token(path) != token  # somebody else may have read it
    path.write_text("short", encoding="utf-8")
    assert len(kept_token(path)) >= 32


def test_more_organs_than_the_page_can_show_are_refused(kept: MadeReview) -> None:
    material = kept.material()
    material.labels = LabelSet(labels=tuple(Label(name=f"organ {value}", value=value) for value in range(1, 300)))
    with pytest.raises(ConfigError, match="at most 253 organs, the dataset has 299"):
        serve(material, (0,), "", announce=pytest.fail)
