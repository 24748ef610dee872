"""Publish a trained model on the Hub: weights, code, images and a model card, in one commit."""

from snowmelt.config import parse
from snowmelt.errors import UserError, run
from snowmelt.publishing.options import PublishConfig


def main() -> None:
    config = parse(PublishConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import tempfile
    from pathlib import Path

    from snowmelt.publishing.export import add_variant, export
    from snowmelt.publishing.hub_space import publish_space
    from snowmelt.publishing.static_space import check_exporter, publish_static_space, write_static_space
    from snowmelt.publishing.upload import check_rights, open_repository, upload

    def write(folder: Path) -> None:
        export(
            Path(str(config.model)),
            folder,
            str(config.hub_model_id),
            license=config.license,
            dataset_name=config.dataset_name,
            report=Path(config.report) if config.report else None,
            stock_pipeline=config.stock_pipeline,
        )
        if config.variant:
            add_variant(folder, config.variant)

    if config.output_dir:
        target = Path(config.output_dir)
        if target.exists() and not target.is_dir():
            raise UserError(f"--output_dir {target} is a file; name a folder")
        if target.exists() and any(target.iterdir()):
            raise UserError(f"--output_dir {target} is not empty; name another")
        # Beside it, so that it is there as a whole or not at all.
        beside = next(parent for parent in target.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(dir=beside, prefix=".publication-") as partial:
            whole = Path(partial) / "whole"
            whole.mkdir()
            write(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            whole.replace(target)
        print(f"what would be published is in {target}")
        return
    check_rights(str(config.hub_model_id), config.hub_token)
    if config.static_space:
        check_exporter()
        check_rights(config.static_space, config.hub_token)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as page:
        write(Path(folder))
        if config.static_space:
            write_static_space(Path(folder), Path(page))
        repository = open_repository(str(config.hub_model_id), private=config.private, token=config.hub_token)
        info = upload(Path(folder), repository, "Trained model", revision=config.revision, create_pr=config.create_pr)
        print(info.pr_url or info.commit_url)
        if config.static_space:
            print(publish_static_space(Path(page), config.static_space, repository, private=config.private))
    if config.space:
        print(publish_space(repository, private=config.private))


if __name__ == "__main__":
    run(main)
