"""`ldm-ae push`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm_ae.commands._inputs import print_notes, print_path
from ldm_ae.commands._options import (
    IMAGES,
    add_compute_options,
    add_export_options,
    add_images_options,
    add_model,
    add_overwrite,
)
from ldm_ae.commands.interface import Command
from ldm_ae.core.errors import UserError
from ldm_ae.io.files import new_folder, require_new_folder, writing_folder

MESSAGE = "Upload with ldm-ae push"


class Push(Command):
    """Upload of a model to the Hugging Face hub, with a generated model card."""

    name = "push"
    summary = "Upload a model with a generated card to the Hugging Face hub, or write both to a folder."
    order = 75

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the model, the repository, and what the card is written from."""
        add_model(parser, required=True)
        parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the Hugging Face hub, created if "
                            "it does not exist")  # fmt: skip
        parser.add_argument("--license", metavar="ID", help="licence of the weights by the hub's identifier, such as "
                            "apache-2.0 or other; required for an upload")  # fmt: skip
        parser.add_argument("--folder", metavar="DIR", help="write all files to this new folder and upload nothing; "
                            "`hf upload OWNER/NAME DIR` uploads them later")  # fmt: skip
        add_overwrite(parser)
        parser.add_argument("--private", action="store_true", help="create a private repository; an existing one keeps "
                            "its visibility, and a public one is refused")  # fmt: skip
        parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to, created if it does not exist "
                            "(default: main)")  # fmt: skip
        parser.add_argument("--message", default=MESSAGE, help="commit message (default: %(default)s)")
        parser.add_argument("--images", help="evaluate the model on these images, show the first of them in the "
                            f"card, and measure a missing scale on them: {IMAGES}")  # fmt: skip
        parser.add_argument("--evaluation", metavar="DIR", help="use the scores in this folder of ldm-ae evaluate, "
                            "which must be this model's; --images then only gives the pictures")  # fmt: skip
        parser.add_argument("--limit", type=int, help="evaluate on the first LIMIT images only")
        parser.add_argument("--pictures", type=int, default=4, metavar="N", help="number of images to show in the "
                            "card, which are uploaded with it; 0 shows none (default: %(default)s)")  # fmt: skip
        add_export_options(parser)
        add_images_options(parser)
        add_compute_options(parser)

    def run(self, args: argparse.Namespace) -> None:
        """Write the model and its card, and upload them unless `--folder` is given."""
        from ldm_ae.interop.card import CARD_FILES, check_licence
        from ldm_ae.interop.hub_upload import check_repository, check_upload, upload_model
        from ldm_ae.models.loading.places import local_place

        args.repository = check_repository(args.repository)
        if args.license is not None:
            check_licence(args.license)
        elif args.folder is None:
            raise UserError(
                "an upload needs the licence of the weights: add --license with one of the hub's identifiers, such as "
                "apache-2.0, mit, cc-by-nc-4.0, openrail or other"
            )
        _check_numbers(args)
        exists = False
        if args.folder is not None:
            _refuse_upload_options(args)
            require_new_folder(args.folder, "the model", own_files=CARD_FILES, overwrite=args.overwrite)
        local_place(args.model)
        if args.folder is None:
            exists = check_upload(args.repository, private=args.private)

        from ldm_ae.commands._push import write_model_and_card

        with _target(args.folder) as folder:
            print_notes(write_model_and_card(args, folder))
            if args.folder is None:
                place = upload_model(
                    folder, args.repository, exists=exists, private=args.private, revision=args.revision,
                    message=args.message,
                )  # fmt: skip
        if args.folder is None:
            print_path("model on the Hugging Face hub", place)
        else:
            print_path("model and card", args.folder)


def _check_numbers(args: argparse.Namespace) -> None:
    if args.pictures < 0 or (args.limit is not None and args.limit < 1):
        raise UserError(
            f"--pictures must be at least 0 and --limit at least 1; got {args.pictures} and {args.limit or 0}"
            if args.limit is not None else f"--pictures is {args.pictures}; it must be at least 0"
        )  # fmt: skip
    if args.limit is not None and (args.images is None or args.evaluation is not None):
        other = "without --images" if args.images is None else "with --evaluation"
        raise UserError(f"--limit has no effect {other}; remove it")


def _refuse_upload_options(args: argparse.Namespace) -> None:
    """Raise UserError for an option that only an upload has."""
    given = {"--private": args.private, "--revision": args.revision, "--message": args.message != MESSAGE}
    if names := [name for name, value in given.items() if value]:
        raise UserError(f"{names[0]} has no effect with --folder, which uploads nothing; remove one of them")


@contextmanager
def _target(folder: str | None) -> Iterator[Path]:
    """Yield the path of a folder to write: a temporary one, or one that becomes `folder` when the block ends well."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="ldm_ae_push_") as temporary:
            yield Path(temporary, "model")
        return
    out = Path(folder).absolute()
    with new_folder(out.parent), writing_folder(out) as written:
        yield written
