"""Images for a contact sheet come from all over a source."""

from types import SimpleNamespace

from hfssl.data.image.contact_sheet import pick_images


class Pieces:
    def __init__(self, *pieces):
        self.pieces = pieces

    def read(self, piece):
        return SimpleNamespace(columns={"image": list(self.pieces[piece])})

    def samples(self, read):
        return read.columns["image"]


def test_images_come_from_different_pieces():
    source = Pieces("abc", "def", "", "ghi")
    picked = pick_images(source, 4)
    assert len(set(picked)) == 4 and all(set(picked) & set(piece) for piece in ("abc", "def", "ghi"))
    assert pick_images(source, 4) == picked
    assert sorted(pick_images(source, 100)) == sorted("abcdefghi")
    assert any(pick_images(source, 4, seed) != picked for seed in range(1, 5))
