"""Pictures, annotations and names that are broken, strange or malicious, as bytes."""

import contextlib
import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

ACCEPTED = "accepted"
UNDECODABLE = "undecodable"
UNREADABLE = "unreadable_annotation"
INVALID_KEY = "invalid_key"
TOO_MANY = "too_many_pixels"
ANY = ""
"""Stands for any status: it is enough that there is a row."""
ALLOWED = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that pictures may have."""
SIZE = (125, 93)


class Hostile(NamedTuple):
    """A picture in an input.

    Attributes:
      kind: row of the table.
      name: name of the picture, without a suffix.
      data: content of the file.
      status: expected status of its row, several separated by `|`, or `ANY`.
      xml: its annotation; None for one that fits the picture.
    """

    kind: str
    name: bytes
    data: bytes
    status: str
    xml: bytes | None = None


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Returns a picture with gradients."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 2 % 256, y * 2 % 256, (x + y) % 256], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray((x * 500 % 65536).astype(np.uint16))
    return image if mode == "RGB" else image.convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """Encodes a picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    # Pillow leaves settings of a format on the picture, which would affect the next format.
    more = [each.copy() for each in options.pop("append_images", ())]
    image.copy().save(buffer, form, **options, **({"append_images": more} if more else {}))
    return buffer.getvalue()


def fitting_xml(
    width: int = SIZE[0], height: int = SIZE[1], boxes: str = "", name: str = "n02110063"
) -> str:
    """Returns an annotation with these objects, or with one box in the middle."""
    box = (
        f"<object><name>{name}</name><bndbox><xmin>30</xmin><ymin>20</ymin><xmax>90</xmax>"
        "<ymax>70</ymax></bndbox></object>"
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{boxes or box}</annotation>"


def lossless_jpeg() -> bytes:
    """Returns a lossless grey JPEG. libjpeg-turbo decodes it, but never at a smaller size."""
    return _flat_jpeg(0xC3, (0x11,), b"\1\0\0", bits=SIZE[0] * SIZE[1])


def tall_chroma_jpeg() -> bytes:
    """Returns a JPEG in which four rows share their chroma (4:4:1), which simplejpeg refuses."""
    units = -(-SIZE[0] // 8) * -(-SIZE[1] // 32)
    return _flat_jpeg(0xC0, (0x14, 0x11, 0x11), b"\0\x3f\0", bits=units * 6 * 2)


def _flat_jpeg(frame: int, samplings: tuple[int, ...], scan: bytes, bits: int) -> bytes:
    """Returns a grey JPEG of a kind that Pillow does not write. Every code in it is a 0."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    count = len(samplings)
    components = b"".join(bytes([number, sampling, 0]) for number, sampling in enumerate(samplings))
    one_code = bytes([1, *[0] * 15, 0])
    segments = (
        segment(0xDB, b"\0" + b"\1" * 64),
        segment(0xC4, b"\x00" + one_code) + segment(0xC4, b"\x10" + one_code),
        segment(frame, struct.pack(">BHHB", 8, SIZE[1], SIZE[0], count) + components),
        segment(0xDA, bytes([count]) + b"".join(bytes([n, 0]) for n in range(count)) + scan),
    )
    # The last byte is filled up with ones.
    codes = bytes(bits // 8) + (bytes([0xFF >> bits % 8]) if bits % 8 else b"")
    return b"\xff\xd8" + b"".join(segments) + codes + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(width: int, height: int, *before: bytes) -> bytes:
    """Returns a PNG that announces a size but has almost no content."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(bytes(1000)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 125 93\n%%EndComments\n"
    b"(%pipe%touch /tmp/owned) (w) file\nshowpage\n%%EOF\n"
)
_TIFF = b"II*\0\x08\0\0\0"


def _tiff(*entries: tuple[int, int, int, int], after: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return _TIFF + struct.pack("<H", len(entries)) + body + struct.pack("<I", after)


FOREIGN: dict[str, bytes] = {
    "PostScript": POSTSCRIPT,
    "PostScript with a preview": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<IIIIIIH", 30, len(POSTSCRIPT), 0, 0, 0, 0, 0xFFFF)
    + POSTSCRIPT,
    "PostScript with image data": POSTSCRIPT.replace(
        b"%%EndComments", b'%ImageData: 125 93 8 3 0 1 1 "x"\n%%EndComments'
    ),
    "PostScript after spaces": b"   \n" + POSTSCRIPT,
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(1)>>>>endobj\n%%EOF",
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 93, 125, 8, 3) + bytes(36000),
    "FITS": b"".join(
        f"{line:80}".encode()
        for line in (
            *("SIMPLE  =                    T", "BITPIX  =                    8"),
            *("NAXIS   =                    2", "NAXIS1  =                  125"),
            *("NAXIS2  =                   93", "END"),
        )
    ).ljust(2880)
    + bytes(2880 * 5),
    "FLI": struct.pack("<IHHHHHHI", 128, 0xAF11, 1, 125, 93, 8, 0, 5).ljust(128, b"\0"),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0"
    + struct.pack("<hhhhH", 0, 0, 125, 93, 96)
    + bytes(6)
    + b"\x01\0\x09\0"
    + bytes(60),
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n". c #ff0000",\n"."\n};\n',
    "PCD": bytes(2048) + b"PCD_" + bytes(800_000),
    "MPEG": b"\0\0\1\xb3" + bytes(100),
    "CUR": b"\0\0\2\0\1\0" + struct.pack("<BBBBHHII", 32, 32, 0, 0, 0, 0, 40, 22) + bytes(40),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "SVG, compressed": gzip.compress(b"<svg/>"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "MP4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200),
    "shell script": b"#!/bin/sh\ntouch /tmp/owned\n",
    "pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "ZIP": b"PK\3\4" + bytes(100),
    "gzip bomb": gzip.compress(bytes(20_000_000)),
    "HTML": b"<!DOCTYPE html><script>alert(1)</script>",
    "MVG": b"push graphic-context\nfill 'url(https://example.com/x.jpg\"|touch /tmp/owned\")'\n",
    "path": b"/etc/passwd",
    "DIB": encoded(picture(), "DIB"),
}
"""Files of other kinds, to be named as if they were pictures."""


def _pictures() -> Iterator[Hostile]:
    def good(name: str, data: bytes, status: str = ACCEPTED) -> Hostile:
        return Hostile("pictures: odd but right", name.encode(), data, status)

    rgb, frames = picture(), [picture("L").convert("RGB")] * 2
    exif = Image.Exif()
    exif[0x0112] = 6
    yield good("jpeg progressive", encoded(rgb, "JPEG", progressive=True))
    yield good("jpeg grey", encoded(picture("L"), "JPEG"))
    yield good("jpeg cmyk", encoded(picture("CMYK"), "JPEG"))
    yield good("jpeg lossless", lossless_jpeg(), ANY)
    yield good("jpeg of tall chroma", tall_chroma_jpeg(), ANY)
    yield good("jpeg turned", encoded(rgb, "JPEG", exif=exif))
    yield good("jpeg with more behind", encoded(rgb, "JPEG") + POSTSCRIPT * 100)
    yield good("jpeg with a comment", encoded(rgb, "JPEG", comment=b"%!PS\n" * 1000))
    yield good("mpo", encoded(rgb, "MPO", save_all=True, append_images=frames))
    for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "I;16"):
        yield good(f"png {mode.replace(';', ' ')}", encoded(picture(mode), "PNG"))
    yield good("png seen through", encoded(picture("P"), "PNG", transparency=3))
    yield good("png animated", encoded(rgb, "PNG", save_all=True, append_images=frames))
    yield good("webp", encoded(rgb, "WEBP"))
    yield good("webp lossless alpha", encoded(picture("RGBA"), "WEBP", lossless=True))
    yield good("webp animated", encoded(rgb, "WEBP", save_all=True, append_images=frames))
    yield good("gif", encoded(picture("P"), "GIF"))
    yield good("gif animated", encoded(rgb, "GIF", save_all=True, append_images=frames))
    yield good("gif seen through", encoded(picture("P"), "GIF", transparency=3))
    for mode in ("RGB", "L", "P", "1"):
        yield good(f"bmp {mode}", encoded(picture(mode), "BMP"))
    for mode in ("RGB", "RGBA", "CMYK", "L", "P", "1", "I;16"):
        yield good(f"tiff {mode.replace(';', ' ')}", encoded(picture(mode), "TIFF"))
    for packed in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield good(f"tiff {packed}", encoded(rgb, "TIFF", compression=packed))
    yield good("tiff pages", encoded(rgb, "TIFF", save_all=True, append_images=frames))
    yield good("tiff float", encoded(picture("F"), "TIFF"), UNDECODABLE)
    yield good("tiff lab", encoded(picture("RGB").convert("LAB"), "TIFF"), ANY)


def _broken() -> Iterator[Hostile]:
    def broken(name: str, data: bytes, status: str = UNDECODABLE) -> Hostile:
        return Hostile("pictures: cut, zeros, garbage", name.encode(), data, status)

    garbage = np.random.default_rng(9).integers(0, 256, 4000, np.uint8).tobytes()
    yield broken("empty", b"")
    yield broken("one byte", b"\xff")
    yield broken("zeros", bytes(5000))
    yield broken("garbage", garbage)
    for form in ALLOWED:
        options = {"save_all": True, "append_images": [picture()]} if form == "MPO" else {}
        intact = encoded(picture(), form, **options)
        name = form.lower()
        half = intact[: len(intact) // (4 if form == "MPO" else 2)]
        yield broken(f"{name} cut", half)
        yield broken(f"{name} head", intact[:12])
        yield broken(f"{name} zeros behind", half + bytes(len(intact) - len(half)), ANY)
        yield broken(f"{name} garbage behind", intact[:60] + garbage, ANY)
    loop = _tiff((256, 3, 1, 125), (257, 3, 1, 93), after=8)
    yield broken("tiff loop", loop, ANY)
    yield broken("tiff offsets", _tiff((256, 3, 1, 125), (257, 3, 1, 93), (273, 4, 2**31, 2**31)))
    yield broken("png no size", png_header(0, 0), ANY)


def _bombs() -> Iterator[Hostile]:
    def bomb(name: str, data: bytes, status: str = f"{TOO_MANY}|{UNDECODABLE}") -> Hostile:
        return Hostile("pictures: bombs", name.encode(), data, status)

    jpeg = bytearray(encoded(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    yield bomb("bomb jpeg", bytes(jpeg), TOO_MANY)
    yield bomb("bomb png", png_header(50_000, 50_000), TOO_MANY)
    yield bomb("bomb png sides", png_header(2**31 - 1, 2**31 - 1))
    gif = bytearray(encoded(picture("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield bomb("bomb gif", bytes(gif))
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 40_000, 40_000)
    yield bomb("bomb bmp", bytes(bmp), TOO_MANY)
    strips = (*((256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8)), (262, 3, 1, 1))
    yield bomb("bomb tiff", _tiff(*strips, (259, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 8)))
    size = (16_383).to_bytes(3, "little") * 2
    inside = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + b"VP8L\4\0\0\0\x2f\0\0\0"
    yield bomb("bomb webp", b"RIFF" + struct.pack("<I", len(inside) + 4) + b"WEBP" + inside)
    mpo = bytearray(encoded(picture(), "MPO", save_all=True, append_images=[picture()]))
    at = mpo.index(b"\xff\xc0") + 5
    mpo[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    yield bomb("bomb mpo", bytes(mpo), TOO_MANY)
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 50_000_000, zip=True)
    yield bomb("bomb text in a png", encoded(picture(), "PNG", pnginfo=text), ANY)
    yield bomb("narrow", encoded(Image.new("L", (1, 30_000)), "PNG"), ANY)
    many = [Image.new("P", (2, 2), n % 9) for n in range(2000)]
    frames = encoded(many[0], "GIF", save_all=True, append_images=many[1:])
    yield bomb("gif of many frames", frames, ANY)


def heads() -> Iterator[Hostile]:
    """Yields small files whose metadata would keep a decoder busy without end."""

    def head(name: str, data: bytes, status: str = UNDECODABLE) -> Hostile:
        return Hostile("pictures: heads", name.encode(), data, status)

    jpeg = encoded(picture(), "JPEG")
    # Each of 60,000 tags refers to all bytes that follow the tags.
    tags, behind = 60_000, 100_000
    at = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", tag, 1, behind, at) for tag in range(1000, 1000 + tags))
    directory = struct.pack("<H", tags) + entries + bytes(4)
    exif = b"II*\0\x08\0\0\0" + directory + bytes(behind)
    parts = [b"Exif\0\0" + exif[n : n + 65_000] for n in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    yield head("exif of many tags", jpeg[:2] + segments + jpeg[jpeg.index(b"\xff\xdb") :], ACCEPTED)
    yield head("tiff of many tags", exif)
    yield head("jpeg of empty segments", jpeg[:2] + b"\xff\xe5\0\2" * 1_000_000 + jpeg[2:])
    gif = encoded(picture("P"), "GIF")
    at = 13 + 3 * (2 << (gif[10] & 7))
    blocks = b"\xff" + bytes(255)
    yield head("gif of a long comment", gif[:at] + b"!\xfe" + blocks * 40_000 + b"\0" + gif[at:])
    yield head("gif of many comments", gif[:at] + b"!\xfe\1c\0" * 1_000_000 + gif[at:])
    png = encoded(picture(), "PNG")
    yield head("png of empty chunks", png[:33] + chunk(b"teSt", b"") * 1_000_000 + png[33:])


def _other_formats() -> Iterator[Hostile]:
    Image.init()
    for form in sorted(Image.SAVE):
        if form in ALLOWED:
            continue
        for mode in ("RGB", "L", "1", "F", "RGBA", "P"):
            data = b""
            with contextlib.suppress(Exception):  # Pillow cannot write this mode to memory.
                data = encoded(picture(mode), form)
            if data:
                name = f"{form} {mode}".lower()
                yield Hostile("pictures: other formats", name.encode(), data, UNDECODABLE)
    for name, data in FOREIGN.items():
        kind = "pictures: other formats, by hand"
        yield Hostile(kind, f"by hand {name}".replace(".", "").encode(), data, UNDECODABLE)


_ENTITIES = "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
XML: dict[str, tuple[str | bytes, str]] = {
    "entities": (f'<!DOCTYPE a [<!ENTITY a "aaaa">{_ENTITIES}]><a>&j;</a>', UNREADABLE),
    "one entity": (f'<!DOCTYPE a [<!ENTITY a "1">]>{fitting_xml()}', UNREADABLE),
    "outward": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        UNREADABLE,
    ),
    "net": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "http://127.0.0.1:9/x">]><annotation>&x;</annotation>',
        UNREADABLE,
    ),
    "parameter": ('<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd">%x;]><a/>', UNREADABLE),
    "DTD elsewhere": (f'<!DOCTYPE a SYSTEM "file:///etc/passwd">{fitting_xml()}', ANY),
    "infinite": (fitting_xml().replace(">30<", ">1e999<"), UNREADABLE),
    "many digits": (fitting_xml().replace(">30<", f">{'9' * 100_000}<"), UNREADABLE),
    "NaN": (fitting_xml().replace(">30<", ">NaN<"), UNREADABLE),
    "huge": (fitting_xml().replace(">90<", ">1e30<"), ANY),
    "huge size": (fitting_xml(10**30, 10**30), ANY),
    "negative size": (fitting_xml(-125, -93), "size_mismatch"),
    "words": (fitting_xml().replace(">30<", ">left<"), UNREADABLE),
    "other digits": (fitting_xml().replace(">30<", ">\u0663\u0660<"), ANY),
    "deep": ("<a>" * 20_000 + "</a>" * 20_000, UNREADABLE),
    "many boxes": (
        fitting_xml(boxes=fitting_xml().split("</size>")[1].split("</annotation>")[0] * 5000),
        "not_one_box",
    ),
    "empty file": ("", UNREADABLE),
    "zeros": (bytes(500), UNREADABLE),
    "cut": (fitting_xml()[:80], UNREADABLE),
    "not XML": ("box: 1 2 3 4", UNREADABLE),
    "UTF-16": (
        f'<?xml version="1.0" encoding="utf-16"?>{fitting_xml()}'.encode("utf-16"),
        ACCEPTED,
    ),
    "unknown encoding": (f'<?xml version="1.0" encoding="x-none"?>{fitting_xml()}', UNREADABLE),
    "UTF-7": (f'<?xml version="1.0" encoding="utf-7"?>{fitting_xml()}', ANY),
    "not UTF-8": (fitting_xml(name="\u00ff").encode("latin-1"), UNREADABLE),
    "two roots": (fitting_xml() * 2, UNREADABLE),
    "namespace": (
        fitting_xml().replace("<annotation>", '<annotation xmlns="http://x">'),
        UNREADABLE,
    ),
    "prefix without namespace": (fitting_xml().replace("annotation>", "x:annotation>"), UNREADABLE),
    "instruction": (f'<?xml-stylesheet href="file:///etc/passwd"?>{fitting_xml()}', ACCEPTED),
    "include": (
        fitting_xml().replace(
            "<size>",
            '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd"/><size>',
        ),
        ANY,
    ),
    "CDATA": (fitting_xml().replace(">30<", "><![CDATA[30]]><"), ACCEPTED),
    "long name": (fitting_xml(name="x" * 3_000_000), ANY),
    "JSON": ('{"boxes": [[30, 20, 90, 70]]}', ANY),
    "JSON of nothing": ("{}", UNREADABLE),
    "JSON, deep": ('{"a":' * 100_000, UNREADABLE),
    "JSON with an error": ('{"error": {"a": [1]}}', UNREADABLE),
    "JSON with numbers": ('{"boxes": [[1e999, 1, 2, 3]], "width": 10}', UNREADABLE),
    "JSON with a long number": ('{"boxes": [[' + "9" * 10_000 + ", 1, 2, 3]]}", UNREADABLE),
    "JSON with other types": ('{"boxes": {"a": 1}, "wnid": [1]}', UNREADABLE),
}
"""Annotations, and the status that each leads to."""

NAMES: dict[str | bytes, str] = {
    "..": INVALID_KEY,
    "...": INVALID_KEY,
    "with.dots": INVALID_KEY,
    "back\\slash": INVALID_KEY,
    "..\\..\\up": INVALID_KEY,
    "two\nlines": INVALID_KEY,
    "two\r\nlines": INVALID_KEY,
    "a\ttab": INVALID_KEY,
    "\x1b[31mred\x1b]0;title\x07": INVALID_KEY,
    "\x7fdelete": INVALID_KEY,
    "\x9bcsi": INVALID_KEY,
    "right\u202eleft": INVALID_KEY,
    "mark\u200fmark": INVALID_KEY,
    "zero\u200bwidth": INVALID_KEY,
    "line\u2028line": INVALID_KEY,
    b"not\xffutf8": INVALID_KEY,
    b"\xed\xa0\x80": INVALID_KEY,
    "x" * 240: INVALID_KEY,
    "-rf": ACCEPTED,
    "--output=x": ACCEPTED,
    "$(touch owned)": ACCEPTED,
    "`touch owned`": ACCEPTED,
    "a; touch owned": ACCEPTED,
    "| touch owned": ACCEPTED,
    "%2e%2e%2fup": ACCEPTED,
    "%s%n{0}{x}": ACCEPTED,
    "<script>alert(1)": ACCEPTED,
    '"quotes"': ACCEPTED,
    "=cmd|'x'!A1": ACCEPTED,
    "*?[a-z]": ACCEPTED,
    "~": ACCEPTED,
    " blanks ": ANY,
    "CON": ACCEPTED,
    "\U0001f436\U0001f600": ACCEPTED,
    "e\u0301": ANY,
    "\u00e9": ANY,
    "gs:": ACCEPTED,
}
"""Names of pictures, and the status that each leads to."""


def hostile_pictures() -> list[Hostile]:
    """Returns all pictures of this module, each with a unique name."""
    intact = encoded(picture(), "JPEG")
    pictures = [*_pictures(), *_broken(), *_bombs(), *heads(), *_other_formats()]
    for name, (text, status) in XML.items():
        data = text if isinstance(text, bytes) else text.encode()
        pictures.append(Hostile("annotations", f"xml {name}".encode(), intact, status, data))
    for key, status in NAMES.items():
        stem = key if isinstance(key, bytes) else key.encode()
        pictures.append(Hostile("names", stem, intact, status))
    return pictures


def shown(name: bytes) -> str:
    """Returns a name as records show it, with unprintable characters escaped."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
