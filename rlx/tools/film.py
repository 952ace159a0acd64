"""A video file, frame after frame, with a line of text on each."""

import importlib
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rlx.errors import EnvironmentFault, MissingPackageError, RlxError
from rlx.run.files import reason_of

Frame = NDArray[np.uint8]

_LEAST_SIDE = 240  # pixels, so that the text can be read; smaller pictures are enlarged by a whole number
_LINES = 24  # of text that would fit one below the other
_RATE_FACTOR = 15  # of 0 to 51, x264's own 23: the less, the better


class Film:
    """An MP4 file (H.264) in the making: `add` frames, then `finish`; without that, nothing is left behind."""

    def __init__(self, folder: Path, fps: float) -> None:
        """Prepare; the file is begun with the first frame, which decides its size.

        Args:
            folder: where the file will be.
            fps: frames a second.

        Raises:
            MissingPackageError: imageio-ffmpeg or Pillow is not installed.
        """
        self._ffmpeg, self._image, self._draw, self._font = libraries()
        self._path = folder / f".film-{secrets.token_hex(4)}.mp4"
        self._fps = fps
        self._encoder: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed on leaving)
        self._shape: tuple[int, ...] = ()

    def add(self, picture: Any, text: str) -> None:
        """Add a frame.

        Args:
            picture: `[H, W, 3]`, `[H, W, 4]`, `[H, W, 1]` or `[H, W]`, uint8: the same for all frames.
            text: what to write into its upper left corner.

        Raises:
            EnvironmentFault: it is something else.
            RlxError: the file cannot be written.
        """
        frame = self._written(_enlarged(_as_frame(picture)), text)
        if self._encoder is None:
            self._encoder, self._shape = self._begun(frame), frame.shape
        elif frame.shape != self._shape:
            raise EnvironmentFault(f"its pictures change their size, from {self._shape[:2]} to {frame.shape[:2]}")
        assert self._encoder.stdin is not None
        try:
            self._encoder.stdin.write(np.ascontiguousarray(frame))
        except OSError as error:
            reason = self._end() or reason_of(error)
            raise RlxError(f"cannot write a video into '{self._path.parent}': {reason}") from None

    def finish(self, path: Path) -> Path:
        """End the file and put it at `path`, in place of what is there.

        Raises:
            RlxError: it cannot be written.
        """
        reason = self._end()
        if reason is not None:
            raise RlxError(f"cannot write '{path}': {reason}")
        try:
            self._path.replace(path)
        except OSError as error:
            raise RlxError(f"cannot write '{path}': {reason_of(error)}") from None
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._encoder is not None:
            self._encoder.kill()
            self._end()
        self._said.close()
        self._path.unlink(missing_ok=True)

    def _begun(self, frame: Frame) -> "subprocess.Popen[bytes]":
        """Start ffmpeg, for frames like this one. imageio-ffmpeg's own way to do so does not tell whether it succeeded.

        Raises:
            RlxError: it cannot be started.
        """
        height, width, _ = frame.shape
        pictures = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._fps}", "-i", "-"]
        coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", f"{_RATE_FACTOR}"]
        try:
            command = [self._ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *pictures, *coded, str(self._path)]
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said, process_group=0
            )
        except (OSError, RuntimeError) as error:
            raise RlxError(f"cannot write a video into '{self._path.parent}': {reason_of(error)}") from None

    def _end(self) -> str | None:
        """Let ffmpeg come to its end, and return in one line what kept it from writing the whole video, if anything."""
        assert self._encoder is not None
        self._encoder.communicate()  # closes its input
        status, self._encoder = self._encoder.returncode, None
        if not status:
            return None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        return said.splitlines()[0] if said else f"ffmpeg ended with status {status}"

    def _written(self, frame: Frame, text: str) -> Frame:
        """Return the frame with the text on a dark ground in its corner."""
        image = self._image.fromarray(frame)
        size = max(11, min(frame.shape[:2]) // _LINES)
        font, margin = self._font.load_default(size), size // 2
        draw = self._draw.Draw(image, "RGBA")
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        draw.rectangle((0, 0, right - left + 2 * margin, bottom - top + 2 * margin), fill=(0, 0, 0, 170))
        draw.text((margin - left, margin - top), text, font=font, fill=(255, 255, 255, 255))
        return np.asarray(image)


def libraries() -> list[Any]:
    """Return imageio-ffmpeg, which brings its ffmpeg along, and what of Pillow writes text.

    Raises:
        MissingPackageError: one is not installed.
    """
    return [_imported(name) for name in ("imageio_ffmpeg", "PIL.Image", "PIL.ImageDraw", "PIL.ImageFont")]


def _as_frame(picture: Any) -> Frame:
    """Return a picture as `[H, W, 3]`, H and W even, as the codec wants them: the last row or column stands twice.

    Raises:
        EnvironmentFault: it is no picture.
    """
    frame = np.asarray(picture)
    if frame.ndim == 2:
        frame = frame[:, :, None]
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or not frame.size:
        raise EnvironmentFault(
            f"its render() returned {frame.dtype} {list(frame.shape)}; expected a picture, uint8 [H, W, 3]"
        )
    frame = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[:, :, :3]
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _enlarged(frame: Frame) -> Frame:
    times = -(-_LEAST_SIDE // min(frame.shape[:2]))
    return frame.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else frame


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"imageio_ffmpeg": "imageio-ffmpeg"}.get(module, "pillow")
        raise MissingPackageError.of("rlx eval --video", package, "video") from None
