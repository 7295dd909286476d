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
    """A picture in an input, by its name without a suffix.

    It may have several expected statuses, separated by `|`. Without `xml`, its annotation fits.
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


FOREIGN = {
    "PostScript": POSTSCRIPT,
    "PostScript with a preview": b"\xc5\xd0\xd3\xc6"
    + struct.pack("<IIIIIIH", 30, len(POSTSCRIPT), 0, 0, 0, 0, 0xFFFF)
    + POSTSCRIPT,
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(1)>>>>endobj\n%%EOF",
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 93, 125, 8, 3) + bytes(36000),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "shell script": b"#!/bin/sh\ntouch /tmp/owned\n",
    "pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "gzip bomb": gzip.compress(bytes(20_000_000)),
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
    yield good("mpo", encoded(rgb, "MPO", save_all=True, append_images=frames))
    for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "I;16"):
        yield good(f"png {mode.replace(';', ' ')}", encoded(picture(mode), "PNG"))
    yield good("png animated", encoded(rgb, "PNG", save_all=True, append_images=frames))
    yield good("webp", encoded(rgb, "WEBP"))
    yield good("webp lossless alpha", encoded(picture("RGBA"), "WEBP", lossless=True))
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
_BOX = fitting_xml().split("</size>")[1].split("</annotation>")[0]
XML: dict[str, tuple[tuple[str, str | bytes], ...]] = {
    UNREADABLE: (
        ("entities", f'<!DOCTYPE a [<!ENTITY a "aaaa">{_ENTITIES}]><a>&j;</a>'),
        ("outward", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'),
        ("parameter", '<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd">%x;]><a/>'),
        ("infinite", fitting_xml().replace(">30<", ">1e999<")),
        ("many digits", fitting_xml().replace(">30<", f">{'9' * 100_000}<")),
        ("NaN", fitting_xml().replace(">30<", ">NaN<")),
        ("deep", "<a>" * 20_000 + "</a>" * 20_000),
        ("empty file", ""),
        ("zeros", bytes(500)),
        ("cut", fitting_xml()[:80]),
        ("unknown encoding", f'<?xml version="1.0" encoding="x-none"?>{fitting_xml()}'),
        ("not UTF-8", fitting_xml(name="\u00ff").encode("latin-1")),
        ("two roots", fitting_xml() * 2),
        ("namespace", fitting_xml().replace("<annotation>", '<annotation xmlns="http://x">')),
        ("JSON, deep", '{"a":' * 100_000),
        ("JSON with an error", '{"error": {"a": [1]}}'),
        ("JSON with numbers", '{"boxes": [[1e999, 1, 2, 3]], "width": 10}'),
        ("JSON with a long number", '{"boxes": [[' + "9" * 10_000 + ", 1, 2, 3]]}"),
        ("JSON with other types", '{"boxes": {"a": 1}, "wnid": [1]}'),
    ),
    ACCEPTED: (
        ("UTF-16", f'<?xml version="1.0" encoding="utf-16"?>{fitting_xml()}'.encode("utf-16")),
        ("instruction", f'<?xml-stylesheet href="file:///etc/passwd"?>{fitting_xml()}'),
        ("CDATA", fitting_xml().replace(">30<", "><![CDATA[30]]><")),
    ),
    "size_mismatch": (("negative size", fitting_xml(-125, -93)),),
    "not_one_box": (("many boxes", fitting_xml(boxes=_BOX * 5000)),),
    ANY: (
        ("DTD elsewhere", f'<!DOCTYPE a SYSTEM "file:///etc/passwd">{fitting_xml()}'),
        ("huge", fitting_xml().replace(">90<", ">1e30<")),
        ("UTF-7", f'<?xml version="1.0" encoding="utf-7"?>{fitting_xml()}'),
        ("long name", fitting_xml(name="x" * 3_000_000)),
        ("JSON", '{"boxes": [[30, 20, 90, 70]]}'),
    ),
}
"""Annotations, by the status that they lead to."""

_UNSEEN = "\\\n\r\t\x1b\x7f\x9b\u202e\u200f\u200b\u2028"
_OF_SHELLS = (
    "-rf",
    "--output=x",
    "$(touch owned)",
    "`touch owned`",
    "| touch owned",
    "*?[a-z]",
    "~",
)
_OF_OTHERS = (
    "%2e%2e%2fup",
    "%s%n{0}{x}",
    "<script>alert(1)",
    '"quotes"',
    "=cmd|'x'!A1",
    "CON",
    "gs:",
)
NAMES: dict[str, tuple[str | bytes, ...]] = {
    INVALID_KEY: (
        *("..", "with.dots", "..\\..\\up", b"not\xffutf8", b"\xed\xa0\x80", "x" * 240),
        *(f"a{character}b" for character in _UNSEEN),
    ),
    ACCEPTED: (*_OF_SHELLS, *_OF_OTHERS, "\U0001f436\U0001f600"),
    ANY: (" blanks ", "e\u0301", "\u00e9"),
}
"""Names of pictures, by the status that they lead to."""


def hostile_pictures() -> list[Hostile]:
    """Returns all pictures of this module, each with a unique name."""
    intact = encoded(picture(), "JPEG")
    pictures = [*_pictures(), *_broken(), *_bombs(), *heads(), *_other_formats()]
    for status, annotations in XML.items():
        for name, text in annotations:
            data = text if isinstance(text, bytes) else text.encode()
            pictures.append(Hostile("annotations", f"xml {name}".encode(), intact, status, data))
    for status, names in NAMES.items():
        for name in names:
            stem = name if isinstance(name, bytes) else name.encode()
            pictures.append(Hostile("names", stem, intact, status))
    return pictures


def shown(name: bytes) -> str:
    """Returns a name as records show it, with unprintable characters escaped."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
