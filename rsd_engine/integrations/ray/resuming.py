"""What lies beside the results of a run, and tells whether they may be added to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType

from rsd_engine.engine.chat.questions import ChatSettings, settings_text
from rsd_engine.sampling_params import SamplingParams

_PENDING = ".pending.parquet"  # Ray Data's name for what it has begun to write


class Run:
    """The folders of a run: `output` for results, and beside it what is known of them.

    `output` + ".checkpoint" has `settings.json` and `rows`, Ray Data's list of written rows.
    """

    def __init__(self, files: FileSystem, output: str, folder: str, settings: str) -> None:
        self.output = output
        self._beside = output.rstrip("/") + ".checkpoint"
        self._files = files
        self._folder = folder.rstrip("/")
        self._settings = settings

    @classmethod
    def open(
        cls,
        output: str,
        engine: Mapping[str, Any],
        params: SamplingParams | None,
        chat: ChatSettings,
    ) -> Run:
        """Looks at what is there.

        Raises:
            ValueError: it is not of this run, or not whole.
        """
        if "://" not in output:
            output = str(Path(output).resolve())
        files, folder = FileSystem.from_uri(output)
        run = cls(files, output, folder, settings_text(engine, params, chat))
        run._check()
        return run

    @property
    def checkpoint(self) -> str:
        """The folder of Ray Data's list."""
        return f"{self._beside}/rows"

    def begin(self) -> None:
        """Makes the folders and notes the settings."""
        for folder in (self._folder, f"{self._folder}.checkpoint/rows"):
            self._files.create_dir(folder, recursive=True)
        with self._files.open_output_stream(self._settings_file) as file:
            file.write(self._settings.encode())

    @property
    def _settings_file(self) -> str:
        return f"{self._folder}.checkpoint/settings.json"

    def _check(self) -> None:
        is_begun = self._files.get_file_info(self._settings_file).type == FileType.File
        results = self._names(self._folder)
        if not is_begun:
            if results:
                raise ValueError(
                    f"{self.output} has files, and {self._beside} does not tell which rows they "
                    "answer; give another output"
                )
            return
        with self._files.open_input_stream(self._settings_file) as file:
            written = file.read().decode()
        if written != self._settings:
            raise ValueError(
                f"{self.output} was written with other models or settings (they are in "
                f"{self._beside}/settings.json); give the same ones to resume it, or another output"
            )
        listed = self._names(f"{self._folder}.checkpoint/rows")
        if not results and any(not name.endswith(_PENDING) for name in listed):
            raise ValueError(
                f"{self._beside} lists rows as answered whose results are gone from {self.output}; "
                "bring them back, or remove both to start again"
            )

    def _names(self, folder: str) -> list[str]:
        infos = self._files.get_file_info(
            FileSelector(folder, recursive=True, allow_not_found=True)
        )
        return [info.path for info in infos if info.type == FileType.File]
