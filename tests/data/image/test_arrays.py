"""Images of any number of channels: where they are in a file is a rule, and values come out as they went in."""

import builtins
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hfssl.data.image.arrays import open_array
from hfssl.data.image.decode import DamagedImage, decode_image, image_header, raw_values
from hfssl.data.image.tiles import Tiles
from hfssl.data.image.value_range import judge_range
from hfssl.data.modality import modality
from hfssl.data.sources import open_source


tifffile = pytest.importorskip("tifffile")


def values_of(channels, height=6, width=9, kind="u1", seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 200, (channels, height, width)).astype(kind)


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def dicom(values, **elements):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    frames, dataset.Rows, dataset.Columns = values.shape
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for name, value in elements.items():
        if isinstance(value, pydicom.DataElement):
            dataset.add(value)
        else:
            setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


FILES = {
    "npy, channels first": lambda values: npy(values),
    "npy, channels last": lambda values: npy(np.moveaxis(values, 0, -1)),
    "npy, columns first in memory": lambda values: npy(np.asfortranarray(values)),
    "npy, a batch of one": lambda values: npy(values[None]),
    "npz": lambda values: npz(anything=values),
    "npz of several": lambda values: npz(mask=values[:, :1], image=values),
    "tiff, interleaved": lambda values: tiff(np.moveaxis(values, 0, -1), photometric="minisblack", planarconfig="contig"),
    "tiff, planar": lambda values: tiff(values, photometric="minisblack", planarconfig="separate"),
    "tiff, pages": lambda values: tiff(values, photometric="minisblack"),
    "tiff, tiles": lambda values: tiff(
        np.moveaxis(values, 0, -1), photometric="minisblack", planarconfig="contig", tile=(16, 16), compression="zlib"
    ),
    "bigtiff": lambda values: tiff(values, photometric="minisblack", bigtiff=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_come_out_as_they_went_in(kind, channels):
    values = values_of(channels)
    data = FILES[kind](values)
    assert decode_image(data, num_channels=channels).numpy().tolist() == values.tolist()
    header = image_header(data)
    assert (header.num_channels, header.height, header.width, header.bits) == (channels, 6, 9, 8)
    with pytest.raises(DamagedImage, match=f"it is an? [A-Z]+ of {channels} channels, not of 7"):
        decode_image(data, num_channels=7)


@pytest.mark.parametrize("kind", ["npy, channels last", "tiff, planar", "npz"])
def test_one_or_three_channels_are_a_picture(kind):
    values = values_of(3)
    data = FILES[kind](values)
    assert image_header(data).num_channels is None and not image_header(data).is_grey
    assert decode_image(data).numpy().tolist() == values.tolist()
    luma = decode_image(data, num_channels=1)
    expected = np.tensordot([0.299, 0.587, 0.114], values, 1)
    assert luma.shape == (1, 6, 9) and np.abs(luma[0].numpy() - expected).max() <= 0.5
    grey = npy(values[0])
    assert image_header(grey).is_grey
    assert decode_image(grey).numpy().tolist() == values[:1].repeat(3, 0).tolist()
    assert decode_image(grey, num_channels=1).numpy().tolist() == values[:1].tolist()


def test_a_stated_number_of_channels_says_which_axis_they_are():
    values = values_of(10, 8, 8)
    assert decode_image(npy(values), num_channels=10).numpy().tolist() == values.tolist()
    assert image_header(npy(values), 10).num_channels == 10
    # by itself it is taken for ten rows of eight channels
    assert image_header(npy(values)).num_channels == 8


def test_pages_of_colours_are_the_first_of_them_and_pages_in_grey_too_where_colours_are_wanted():
    colours = np.stack([np.moveaxis(values_of(3, seed=seed), 0, -1) for seed in range(4)])
    data = tiff(colours, photometric="rgb")
    assert image_header(data).num_channels is None
    assert decode_image(data).permute(1, 2, 0).numpy().tolist() == colours[0].tolist()
    pages = values_of(5)
    data = tiff(pages, photometric="minisblack")
    assert decode_image(data).numpy().tolist() == pages[:1].repeat(3, 0).tolist()
    with pytest.raises(DamagedImage, match="5 channels, not of 4"):
        decode_image(data, num_channels=4)


def test_reduced_copies_among_the_pages_are_no_channels():
    file = io.BytesIO()
    values = values_of(4, 32, 32)
    with tifffile.TiffWriter(file) as writer:
        whole = {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16)}
        writer.write(np.moveaxis(values, 0, -1), subifds=0, **whole)
        writer.write(np.moveaxis(values[:, ::2, ::2], 0, -1), subfiletype=1, **whole)
    assert decode_image(file.getvalue(), num_channels=4).numpy().tolist() == values.tolist()


@pytest.mark.parametrize("kind", ["u1", "u2", ">u2", "u4"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 8}])
def test_where_the_least_of_a_tiff_is_white_it_is_the_greatest(kind, options):
    dtype = np.dtype(kind)
    values, most = values_of(1, 37, 50, dtype), 256**dtype.itemsize - 1
    data = tiff(values[0], photometric="miniswhite", byteorder=dtype.byteorder.replace("|", "<"), **options)
    range_of_all = (0.0, float(most)) if dtype.itemsize > 2 else None
    expected = np.rint((most - values.astype(float)) * (255 / most)).repeat(3, 0)
    assert decode_image(data, value_range=range_of_all).numpy().tolist() == expected.tolist()
    tiles = Tiles(16, 12, range_of_all)
    for number, tile in tiles.of_image(data, 0):
        top, left, height, width = tiles.boxes(37, 50)[number]
        assert tile.numpy().tolist() == expected[:, top : top + height, left : left + width].tolist()
    if dtype.itemsize > 1:  # of which the range is judged
        assert raw_values(data).reshape(values.shape).tolist() == (most - values.astype(int)).tolist()


def test_of_what_is_white_in_a_tiff_pages_are_told_and_further_samples_are_not():
    values = values_of(4, 37, 50, "u2")
    pages = open_array(tiff(values, photometric="miniswhite", rowsperstrip=8))
    assert np.array_equal(pages.read(), 65535 - values)
    assert np.array_equal(pages.read_region(5, 17, 20, 30), 65535 - values[:, 5:25, 17:47])
    samples = open_array(tiff(np.moveaxis(values, 0, -1), photometric="miniswhite", planarconfig="contig"))
    assert np.array_equal(samples.read(), np.concatenate([65535 - values[:1], values[1:]]))
    # what stands for no data is a value of the file, and floats have no greatest one
    without = tiff(values[0], photometric="miniswhite", extratags=[(42113, 2, 0, str(values[0, 0, 0]), True)])
    read = open_array(without).read()
    nothing = values[:1] == values[0, 0, 0]
    assert np.isnan(read[nothing]).all() and np.array_equal(read[~nothing], (65535 - values[:1])[~nothing])
    floats = tiff(values[0].astype("f4"), photometric="miniswhite")
    assert np.array_equal(raw_values(floats), values[0])


def test_white_of_twelve_bits_is_the_greatest_of_them():
    pytest.importorskip("imagecodecs")
    values = values_of(4, kind="u2")
    twelve = open_array(tiff(values, photometric="miniswhite", bitspersample=12))
    assert np.array_equal(twelve.read(), 4095 - values)


@pytest.mark.parametrize(
    "values, words",
    [
        (np.zeros((2, 3, 4, 5, 6)), r"it has 5 axes \(2, 3, 4, 5, 6\): an image has \(height, width\)"),
        (np.zeros(7), r"it has 1 axis \(7,\)"),
        (np.zeros((0, 8, 3)), r"it has no values: its shape is \(0, 8, 3\)"),
        (np.zeros((8, 8), complex), "its values are complex128, and no numbers of one part"),
        (np.full((8, 8), "a"), "its values are <U1"),
        (np.zeros((8, 8), "f4"), r"floats, which have no known range: state it \(`--value_range LOW HIGH`\)"),
        (np.zeros((8, 8), "i4"), "its values are int32 integers, which have no known range"),
    ],
)
def test_what_is_no_image_says_why(values, words):
    with pytest.raises(DamagedImage, match=words):
        decode_image(npy(values))


def test_damaged_arrays_say_why():
    whole = npy(values_of(4))
    with pytest.raises(DamagedImage, match="it ends after 116 of 216 bytes of values"):
        decode_image(whole[:-100], num_channels=4)
    with pytest.raises(DamagedImage, match="it holds 2 arrays: a, b. One is needed, or one that is called image"):
        decode_image(npz(a=np.zeros((4, 4)), b=np.zeros((4, 4))))
    data = FILES["tiff, tiles"](values_of(4, 40, 40))
    with pytest.raises(DamagedImage, match="it cannot be decoded|damaged TIFF"):
        decode_image(data[: len(data) // 2], num_channels=4)
    with pytest.raises(DamagedImage, match=r"axes .* beside height and width there may be one, the channels"):
        axes = {"axes": "TCYX"}
        decode_image(tiff(np.zeros((2, 4, 6, 9), "u1"), imagej=True, metadata=axes), num_channels=4)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    data = {"tifffile": tiff(values_of(4), photometric="minisblack"), "pydicom": dicom(values_of(1))}
    imported = builtins.__import__

    def without(name, *args):
        if name.partition(".")[0] in data:
            raise ImportError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, file in data.items():
        with pytest.raises(DamagedImage, match=f"are read with {name}: `pip install {name}"):
            image_header(file)


# -- regions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["npy, channels last", "tiff, interleaved", "tiff, planar", "tiff, tiles", "tiff, pages"]
)
def test_a_region_is_read_alone(kind):
    values = values_of(4, 37, 50)
    options = {} if kind != "tiff, pages" else {"rowsperstrip": 8}
    data = FILES[kind](values) if not options else tiff(values, photometric="minisblack", **options)
    array = open_array(data)
    if array.read_region is None:
        assert kind in ("tiff, interleaved", "tiff, planar")  # of one strip: there is nothing to leave out
        return
    for top, left, height, width in [(0, 0, 37, 50), (5, 17, 20, 30), (36, 49, 1, 1), (16, 16, 16, 16)]:
        region = array.read_region(top, left, height, width)
        assert np.array_equal(region, values[:, top : top + height, left : left + width])


def test_only_the_tiles_that_hold_a_region_are_decoded(monkeypatch):
    data = FILES["tiff, tiles"](values_of(4, 64, 64))
    decoded = []
    monkeypatch.setattr(
        tifffile.TiffPage,
        "decode",
        property(lambda page, decode=tifffile.TiffPage.decode: _counted(page, decode, decoded)),
    )
    open_array(data).read_region(20, 20, 10, 10)
    assert len(decoded) == 1


def _counted(page, decode, decoded):
    function = decode.func(page)  # a cached property

    def counting(encoded, index, **options):
        decoded.append(index)
        return function(encoded, index, **options)

    return counting


# -- ranges -----------------------------------------------------------------------------------------------------------


def test_channels_have_ranges_of_their_own_and_what_is_no_number_is_the_least(caplog):
    rng = np.random.default_rng(0)
    reflectance, height = rng.uniform(0, 1, (2, 64, 64)), rng.uniform(2000, 2100, (2, 64, 64))
    images = [npy(np.stack([a, b]).astype("f4")) for a, b in zip(reflectance, height, strict=True)]
    low_0, high_0, low_1, high_1 = value_range = judge_range(images)
    assert (low_0, high_0) == (0, 1) and 2000 <= low_1 < 2001 and 2099 < high_1 <= 2100
    values = np.array([[[0, 1, 0.5]], [[low_1, high_1, np.nan]]], "f4")
    pixels = decode_image(npy(values), value_range=value_range, num_channels=2)
    assert pixels.tolist() == [[[0, 255, 128]], [[0, 255, 0]]]
    with pytest.raises(DamagedImage, match="`--value_range` is of 2 channels, and it has 4"):
        decode_image(npy(np.zeros((4, 8, 8), "f4")), value_range=value_range, num_channels=4)


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_what_a_geotiff_calls_no_data_has_no_part_in_the_range_and_is_the_least(tile):
    values = np.random.default_rng(0).integers(0, 1000, (40, 40)).astype("i2")
    values[:10] = -9999
    data = tiff(values, extratags=[(42113, "s", 0, "-9999", True)], tile=tile)
    assert judge_range([data]) == (0, 1024)
    pixels = decode_image(data, value_range=(0, 1024))[0].numpy()
    assert (pixels[:10] == 0).all() and np.abs(pixels[10:] - values[10:] * (255 / 1024)).max() <= 0.5
    if tile:
        region = open_array(data).read_region(5, 5, 10, 10)
        assert np.isnan(region[:, :5]).all() and np.array_equal(region[0, 5:], values[10:15, 5:15])


def test_colours_have_one_range():
    colours = np.random.default_rng(0).uniform([[[0]], [[0]], [[0]]], [[[4095]], [[100]], [[50]]], (3, 32, 32))
    assert judge_range([npy(colours.astype("u2"))]) == (0, 4095)


def test_images_of_nothing_but_nan_have_no_range():
    assert judge_range([npy(np.full((4, 8, 8), np.nan))]) is None


def test_dicom_is_what_the_device_measured():
    values = values_of(1, kind="u2")
    assert judge_range([dicom(values)]) == (0, 255)
    assert decode_image(dicom(values), value_range=(0, 255)).numpy().tolist() == values.repeat(3, 0).tolist()
    scaled = dicom(values, RescaleSlope=2, RescaleIntercept=-100, RescaleType="HU")
    assert np.array_equal(open_array(scaled).read(), 2.0 * values - 100)
    negative = dicom(values, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(open_array(negative).read(), 65535 - values)
    signed = values.astype(np.int16) - 100
    assert np.array_equal(open_array(dicom(signed)).read(), signed)
    # what was the least becomes the largest, of -32768 to 32767
    negative = open_array(dicom(signed, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(negative.read(), -1 - signed.astype(int)) and negative.bits == 16
    assert open_array(dicom(values_of(1, kind="i1"))).bits == 16  # not the range of a byte
    frames = values_of(4)
    assert decode_image(dicom(frames), num_channels=4).numpy().tolist() == frames.tolist()


def test_what_a_dicom_is_padded_with_is_no_number():
    values = values_of(1, kind="i2")
    padded = values.copy()
    padded[0, :2], padded[0, 2] = -2000, -1990
    expected = values.astype(float)
    expected[0, :2] = np.nan
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    pydicom = pytest.importorskip("pydicom")
    without_sign = pydicom.DataElement(0x00280120, "US", 63536)  # as some devices write it
    for elements, read in [
        ({}, lambda x: x),
        ({"PixelPaddingValue": without_sign}, lambda x: x),
        (scale, lambda x: x - 1024),
        ({"PhotometricInterpretation": "MONOCHROME1"}, lambda x: -1 - x),
    ]:
        file = dicom(padded, **{"PixelPaddingValue": -2000, **elements})
        found = open_array(file).read()
        assert np.array_equal(found[0, :2], read(expected)[0, :2], equal_nan=True)
        assert np.array_equal(found[0, 3:], read(expected)[0, 3:]) and found[0, 2, 0] == read(-1990)
    between = open_array(dicom(padded, PixelPaddingValue=-1990, PixelPaddingRangeLimit=-2000)).read()
    assert np.isnan(between[0, :3]).all() and np.array_equal(between[0, 3:], expected[0, 3:])
    # what is there is judged by, and what is not is black
    file = dicom(padded + (padded > -1000) * 1000, PixelPaddingValue=-1990, PixelPaddingRangeLimit=-2000)
    assert judge_range([file])[0] >= 0 and decode_image(file, value_range=judge_range([file]))[:, :3].max() == 0
    assert open_array(dicom(values_of(1), PixelPaddingValue=0)).read().dtype == np.uint8


@pytest.mark.parametrize("depth", [8, 16])
def test_dicom_with_a_palette_is_in_colour(depth):
    values = values_of(1) % 4
    colours = np.array([[0, 10, 200, 255], [255, 0, 7, 9], [3, 100, 50, 0]]) * (257 if depth == 16 else 1)
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in zip(("Red", "Green", "Blue"), colours.astype(f"u{depth // 8}"), strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, depth]
        elements[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    file = dicom(values, **elements)
    found = open_array(file)
    assert found.shape == (3, *values.shape[1:]) and found.bits == depth
    assert np.array_equal(found.read(), colours[:, values[0]])
    if depth == 8:
        assert np.array_equal(decode_image(file).numpy(), colours[:, values[0]])


def test_png_files_of_four_channels_have_four_where_four_are_wanted():
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert decode_image(file.getvalue(), num_channels=4).permute(1, 2, 0).numpy().tolist() == values.tolist()
    with pytest.raises(DamagedImage, match="it is a PNG of 4 channels, not of 5"):
        decode_image(file.getvalue(), num_channels=5)


def test_either_order_of_bytes_has_all_of_sixteen_bits():
    values = values_of(1, kind="u2") * 300
    for kind in ("<u2", ">u2"):
        assert np.abs(decode_image(npy(values.astype(kind)))[0].numpy() - values[0] / 257).max() <= 0.5


def test_arrays_beside_pictures_are_no_images(tmp_path):
    np.save(tmp_path / "features.npy", np.zeros((7, 5)))
    assert open_source(str(tmp_path), modality="image").files == ["features.npy"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert open_source(str(tmp_path), modality="image").files == ["a.png"]


# -- columns ----------------------------------------------------------------------------------------------------------


def columns_of(images):
    """Arrays as columns of arrow, each in another way."""
    import datasets

    nested = [image.tolist() for image in images]
    shape = images[0].shape
    tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(images[0].dtype), shape)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([i.ravel() for i in images])), images[0].size)
    described = [{"bytes": i.tobytes(), "shape": list(shape), "dtype": str(i.dtype)} for i in images]
    array = datasets.Features({"image": datasets.Array3D(shape, str(images[0].dtype))})
    kind = pa.from_numpy_dtype(images[0].dtype)
    for _ in shape:
        kind = pa.list_(kind)
    return {
        "lists": pa.table({"image": pa.array(nested, kind)}),
        "tensors": pa.table({"image": pa.ExtensionArray.from_storage(tensor, flat)}),
        "bytes and shape": pa.table({"image": described}),
        "Array3D": datasets.Dataset.from_dict({"image": nested}, features=array).with_format("arrow")[:],
    }


@pytest.mark.parametrize("kind", ["lists", "tensors", "bytes and shape", "Array3D"])
def test_arrays_in_parquet_are_images(tmp_path, kind):
    images = [values_of(5, 7, 9, "u2", seed) for seed in range(6)]
    pq.write_table(columns_of(images)[kind], tmp_path / "train.parquet")
    source = open_source(str(tmp_path), modality="image")
    read = [encoded for piece in range(len(source)) for encoded in source.samples(source.read(piece))]
    assert [decode_image(each, num_channels=5).tolist() for each in read] == [
        decode_image(npy(image), num_channels=5).tolist() for image in images
    ]


def test_ragged_lists_are_damaged():
    column = pa.chunked_array([pa.array([[[1, 2], [3]], [[1, 2], [3, 4]], None])])
    ragged, whole, missing = modality("image").from_arrow(column)
    assert "its rows have 1, 2 numbers" in ragged.reason and missing is None
    assert np.load(io.BytesIO(whole)).tolist() == [[1, 2], [3, 4]]
