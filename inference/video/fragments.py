"""Encoding of videos a batch at a time: each batch is a fragment of an mp4 file that can be played from then on.

Source: docs/conditioning.md, "Writing the video". A fragmented mp4 is a beginning, which says what the video is, and
fragments that stand for themselves, so a file of whole fragments is whole at any moment; a plain mp4, which every
program can seek in, is made of it at the end by copying packets.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
from torch import Tensor

# The same on every machine: the bits that x264 writes depend on the number of its threads.
ENCODER_THREADS = 4
# x264's tree of macroblocks decides on bits by chance where a row of them is no multiple of eight.
REPEATABLE = "mbtree=0"
# RGB is converted with the BT.601 matrix to limited range, as ffmpeg does by default; the file says so.
BT601_MATRIX = 6
LIMITED_RANGE = 1
# x264 reorders frames by at most two, and none may be decoded after it is shown: all are shown two frames later in the
REORDERED = 2
FRAGMENTED = "frag_discont+delay_moov+default_base_moof+frag_keyframe+skip_trailer"


@dataclass(frozen=True)
class VideoForm:
    """Size, rate and quality: H.264 yuv420p at constant ``crf``, or RGB without any loss."""

    fps: int
    height: int
    width: int
    crf: int = 23
    lossless: bool = False

    def add_stream(self, container: av.container.OutputContainer) -> av.VideoStream:
        """A stream of this form in ``container``, with an encoder of its own."""
        quality = {"qp": "0"} if self.lossless else {"crf": str(self.crf)}
        options = {**quality, "preset": "medium", "x264-params": REPEATABLE}
        stream = container.add_stream("libx264rgb" if self.lossless else "libx264", rate=self.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "rgb24" if self.lossless else "yuv420p"
        stream.codec_context.thread_count = ENCODER_THREADS
        if not self.lossless:
            stream.codec_context.colorspace, stream.codec_context.color_range = BT601_MATRIX, LIMITED_RANGE
        return stream


class FragmentEncoder:
    """Turns batches of frames into bytes that follow one another in a file; equal batches give equal bytes.

    ``frames``, ``fragments``: what the file has already.
    """

    def __init__(self, form: VideoForm, frames: int = 0, fragments: int = 0) -> None:
        self.form = form
        self.frames = frames
        self.fragments = fragments

    def encode(self, frames: Tensor) -> bytes:
        """The fragment of ``frames``, uint8 (T, height, width, 3) RGB on the CPU; the first begins the file."""
        buffer = io.BytesIO()
        options = {"movflags": FRAGMENTED, "fragment_index": str(self.fragments + 1), "fflags": "+bitexact"}
        with av.open(buffer, "w", format="mp4", options=options) as container:
            stream = self.form.add_stream(container)
            for number, packet in enumerate(self._packets(stream, frames)):
                packet.pts, packet.dts = packet.pts + REORDERED, self.frames + number
                container.mux(packet)
        first, self.fragments = self.fragments == 0, self.fragments + 1
        self.frames += len(frames)
        return b"".join(box for kind, box in boxes(buffer.getvalue()) if first or kind in (b"moof", b"mdat"))

    def _packets(self, stream: av.VideoStream, frames: Tensor) -> Iterator[av.Packet]:
        for number, picture in enumerate(frames.numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if not self.form.lossless:
                frame = frame.reformat(format="yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = self.frames + number, Fraction(1, self.form.fps)
            yield from stream.encode(frame)
        yield from stream.encode(None)


def whole_fragments(file: IO[bytes]) -> int:
    """How many bytes of a fragmented file are its beginning and whole fragments; 0 without any of those."""
    end = place = 0
    size = file.seek(0, os.SEEK_END)
    while place + 8 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        place += max(length, 8)
        if kind == b"mdat" and place <= size:
            end = place
    return end


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes that an mp4 file is made of: their kind and their bytes."""
    place = 0
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        yield kind, data[place : place + size]
        place += size


def to_plain(source: Path, destination: Path) -> int:
    """Write the packets of a fragmented file as a plain mp4 that begins at time zero; gives the number of frames."""
    count = 0
    options = {"fflags": "+bitexact"}
    with av.open(str(source)) as fragments, av.open(str(destination), "w", format="mp4", options=options) as plain:
        source_stream = fragments.streams.video[0]
        stream = plain.add_stream_from_template(source_stream)
        for packet in fragments.demux(source_stream):
            if packet.dts is None:
                continue
            earlier = round(REORDERED / (packet.time_base * source_stream.average_rate))
            packet.pts, packet.dts = packet.pts - earlier, packet.dts - earlier
            packet.stream = stream
            plain.mux(packet)
            count += 1
    return count
