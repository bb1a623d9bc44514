"""Segments the volume that 3D Slicer shows, by flaresemi_serve: paste it into Slicer's Python console.

Set `ADDRESS` and `TOKEN` to what flaresemi_serve has printed. The result is a segmentation node with the organs' names.
Only the standard library and Slicer are needed; `segment_file` works in any Python.
"""

import json
import pathlib
import tempfile
import urllib.error
import urllib.parse
import urllib.request

ADDRESS = "http://127.0.0.1:8390"
TOKEN = ""


def ask(path: str, body: bytes | None = None, *, address: str = ADDRESS, token: str = "") -> bytes:
    """The server's answer; an error says what it said."""
    headers = {"Authorization": f"Bearer {token or TOKEN}", "Content-Type": "application/octet-stream"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, body, headers)) as answer:
            return answer.read()
    except urllib.error.HTTPError as refused:
        raise RuntimeError(refused.read().decode()) from None


def segment_file(image: pathlib.Path, labels: pathlib.Path, *, address: str = ADDRESS, token: str = "") -> dict:
    """Segments an image file, writes its label map, and returns statistics, reliability, notes and warnings."""
    query = urllib.parse.urlencode({"name": image.name, "format": "nii.gz"})
    told = json.loads(ask(f"/segment?{query}", image.read_bytes(), address=address, token=token))
    labels.write_bytes(ask(told["labels"], address=address, token=token))
    return told


def organs(*, address: str = ADDRESS, token: str = "") -> dict[int, str]:
    """Names of the values in a label map; of regions, of those that one value has alone."""
    about = json.loads(ask("/model", address=address, token=token))
    return {values[0]: name for name, values in about["organs"].items() if len(values) == 1}


def segment_in_slicer() -> None:
    """Sends the volume of the first slice view and shows the result."""
    import slicer  # only there

    volume = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetBackgroundLayer().GetVolumeNode()
    with tempfile.TemporaryDirectory() as folder:
        image, labels = pathlib.Path(folder) / "scan.nii.gz", pathlib.Path(folder) / "labels.nii.gz"
        slicer.util.saveNode(volume, str(image))
        told = segment_file(image, labels)
        segmentation = slicer.util.loadSegmentation(str(labels))
    segmentation.SetName(f"{volume.GetName()} organs")
    names = organs()
    for index in range(segmentation.GetSegmentation().GetNumberOfSegments()):
        segment = segmentation.GetSegmentation().GetNthSegment(index)
        segment.SetName(names.get(segment.GetLabelValue(), segment.GetName()))
    for warning in told["warnings"]:
        print("warning:", warning)  # noqa: T201 (to Slicer's console)
    for organ in told["statistics"]:
        print(f"{organ['organ']}: {organ['volume_ml']:.1f} ml")  # noqa: T201


if __name__ == "__main__":
    segment_in_slicer()
