"""Pieces of picture files that Pillow does not write: colour profiles, deep PNGs, EXIF with a preview."""

import struct
import zlib

from PIL import Image, ImageCms


def profile(space=b"RGB ", gamma=2.2, swapped=False):
    """A small matrix profile like Display P3's, after ICC.1:2022; `swapped` exchanges red and green, so that nobody can miss it."""

    def fixed(*numbers):
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    red, green, blue = (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)
    if swapped:
        red, green = green, red
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)}
    if space == b"RGB ":
        tags |= {name: b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def ink_profile():
    """A CMYK profile, after ICC.1:2022, section 10.10 (lut8Type), whose first ink is magenta and whose second is cyan."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    lights = Image.new("RGB", (16, 1))
    for x, (c, m, y, k) in enumerate(corners):
        lights.putpixel((x, 0), tuple(255 * (1 - ink) * (1 - k) for ink in (m, c, y)))
    lab = ImageCms.profileToProfile(lights, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    straight = bytes(range(256))
    nodes = b"".join(bytes(lab.getpixel((x, 0))) for x in range(16))
    matrix = struct.pack(">9i", *(65536 * one for one in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + straight * 4 + nodes + straight * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    at = 128 + 4 + 24
    tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", at, 20) + b"A2B0" + struct.pack(">II", at + 20, len(table))
    head = struct.pack(">I4sI4s4s4s", at + 20 + len(table), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + white + table


def png16(width, height, kind, samples, transparent=b""):
    """A PNG of 16 bits per channel; `kind` is its colour type, `samples` go row by row."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packed = struct.pack(f">{len(samples)}H", *samples)
    line = len(packed) // height
    rows = b"".join(b"\0" + packed[line * y : line * (y + 1)] for y in range(height))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    keyed = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + keyed + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PREVIEW = b"a small picture of what was cut away"


def camera_exif(orientation=6, *, note=b"of the maker"):
    """EXIF as a camera writes it: who, when, where, the old size and colours, and a preview behind it all."""
    block = Image.Exif()
    block[0x010F] = "a camera"
    block[0x0112] = orientation
    block[0x013B] = "an author"
    block.get_ifd(0x8769).update({0x9003: "2026:11:21 12:00:00", 0xA001: 65535, 0xA002: 4000, 0xA003: 3000, 0x927C: note})
    block.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 36.0)})
    tiff = block.tobytes().removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    (entries,) = struct.unpack_from(f"{order}H", tiff, 8)
    link = 10 + 12 * entries
    there = len(tiff) + 2 + 2 * 12 + 4
    small = struct.pack(f"{order}HHHIIHHIII", 2, 0x0201, 4, 1, there, 0x0202, 4, 1, len(PREVIEW), 0)
    return b"Exif\0\0" + tiff[:link] + struct.pack(f"{order}I", len(tiff)) + tiff[link + 4 :] + small + PREVIEW
