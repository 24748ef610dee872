"""`--push_to_hub`: the repository is known before training, kept up to date during it, and complete after it."""

import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from snowmelt.errors import UserError, one_line
from snowmelt.options import DiffusionConfig
from snowmelt.publishing.export import export
from snowmelt.publishing.upload import Repository, check_rights, open_repository, upload

FOLDER = ".publication"
"""Below the run's folder, whose file system lets the weights have a second name in place of a copy."""


class HubPush:
    """What a training script does with the Hub; nothing without `--push_to_hub`, or in processes but the first.

    Args:
        config: the run's options.
        accelerator: tells which process this is.

    Raises:
        UserError: before anything is read or made, if the token may not write there, or the Hub can't be asked.
    """

    def __init__(self, config: DiffusionConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.accelerator = accelerator
        self.run = Path(config.output_dir)
        self.repository: Repository | None = None
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        if config.push_to_hub and accelerator.is_main_process:
            check_rights(self._name, config.hub_token)

    @property
    def _name(self) -> str:
        """As it was given, or that of the run's folder."""
        return self.config.hub_model_id or self.run.resolve().name

    def open(self) -> None:
        """Find or create the repository.

        Raises:
            UserError: if it can't be written to.
        """
        if self.config.push_to_hub and self.accelerator.is_main_process:
            private, token = self.config.hub_private_repo, self.config.hub_token
            self.repository = open_repository(self._name, private=private, token=token)
            self.config.hub_model_id = self.repository.id

    def during(self) -> None:
        """Upload the pipeline just saved, in the background; nothing while an earlier upload is still under way."""
        if self.repository is None or (self._running and not self._running.done()):
            return
        folder = self.run / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            export(self.run, folder, self.repository.id, license=self.config.license, strip=False)
        except (UserError, OSError) as error:
            print(f"nothing uploaded now: {one_line(error)}; training goes on", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._running = self._pool.submit(self._upload_quietly, folder, self.repository)

    def _upload_quietly(self, folder: Path, repository: Repository) -> None:
        try:
            upload(folder, repository, "Model in training")
            self.repository = replace(repository, created=False)
        except UserError as error:
            print(f"{error}; training goes on, and uploads again", flush=True)
        finally:
            shutil.rmtree(folder)

    def finish(self) -> None:
        """Publish the trained model.

        Raises:
            UserError: if the upload fails; what to do is said. The run's folder is complete.
        """
        if self.repository is None:
            return
        self._pool.shutdown()
        with tempfile.TemporaryDirectory(dir=self.run, prefix=FOLDER) as folder:
            try:
                export(self.run, Path(folder), self.repository.id, license=self.config.license)
                info = upload(Path(folder), self.repository, "Trained model")
            except (UserError, OSError) as error:
                raise UserError(
                    f"the model is complete in {self.run}, but {one_line(error)}; publish it with "
                    f"`python publish.py --model {self.run} --hub_model_id {self.repository.id}`"
                ) from error
        self.accelerator.print(f"published: {info.repo_url}, {info.commit_url}")
