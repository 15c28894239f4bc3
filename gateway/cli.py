"""The command `image-gateway`. Each command reads the settings, wires what it needs, and says in words what went wrong.

Heavy modules are imported by the commands that need them, so that `--help` is instant.
"""

# pyright: reportUnknownMemberType=false, reportUntypedFunctionDecorator=false
# rich_click types its decorators only in part.

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import rich_click as click

from gateway import __version__
from gateway.errors import GatewayError
from gateway.settings import Settings, SettingsError, read_settings

_T = TypeVar("_T")

CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), help="The settings file; without it, gateway.toml if there is one."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="image-gateway")
def main() -> None:
    """An OpenAI-compatible image gateway for fal, Replicate and your own machine."""


@main.command()
@CONFIG
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes; above 1 needs PostgreSQL.")
def serve(config: Path | None, host: str, port: int, workers: int) -> None:
    """Run the server."""
    from gateway.server import run_server

    with _told():
        run_server(_settings(config), host, port, workers, config)


@main.command()
@CONFIG
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535))
def dev(config: Path | None, host: str, port: int) -> None:
    """Run the server for trying it out: prints its address, a development key and a command to paste."""
    from gateway.server import run_development

    with _told():
        run_development(_settings(config), host, port)


@main.command()
@CONFIG
@click.option("--check", is_flag=True, help="Change nothing; fail if tables and migrations differ.")
def migrate(config: Path | None, *, check: bool) -> None:
    """Bring the database to the current schema."""
    from gateway.db import migrate as migrations

    with _told():
        if check:
            differences = migrations.check()
            for line in differences:
                click.echo(line, err=True)
            if differences:
                _fail("tables and migrations differ")
            click.echo("Tables and migrations agree.")
            return
        click.echo(f"The database has schema {migrations.upgrade(_settings(config).database_url)}.")


@main.group()
def keys() -> None:
    """API keys of tenants."""


@keys.command("create")
@CONFIG
@click.option("--tenant", required=True, help="Made if it is new.")
@click.option("--name", default="default", show_default=True)
@click.option("--budget-usd", help="Recorded with the key; not enforced yet.")
@click.option("--json", "as_json", is_flag=True)
def create_key(config: Path | None, tenant: str, name: str, budget_usd: str | None, *, as_json: bool) -> None:
    """Make a key and print its secret, this once."""
    with _told():
        made = _with_tenants(_settings(config), lambda tenants: tenants.create_key(tenant, name, _dollars(budget_usd)))
    if as_json:
        _print_json({"key": made.secret, "key_id": made.key_id, "tenant": made.tenant_name})
        return
    click.echo(made.secret)
    click.echo(f"This is shown once. Key {made.key_id} of tenant {made.tenant_name}.", err=True)


@keys.command("list")
@CONFIG
@click.option("--tenant", help="Only this tenant's.")
@click.option("--json", "as_json", is_flag=True)
def list_keys(config: Path | None, tenant: str | None, *, as_json: bool) -> None:
    """List keys, never their secrets."""
    with _told():
        found = _with_tenants(_settings(config), lambda tenants: tenants.list_keys(tenant))
    rows = [
        {
            "key_id": key.key_id,
            "tenant": key.tenant_name,
            "name": key.name,
            "prefix": key.prefix,
            "created_at": key.created_at.isoformat(),
            "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
            "last_used_at": key.last_used_at.isoformat() if key.last_used_at else None,
        }
        for key in found
    ]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        state = "revoked" if row["revoked_at"] else "active"
        click.echo(f"{row['key_id']}  {row['prefix']}…  {row['tenant']}  {row['name']}  {state}")


@keys.command("revoke")
@CONFIG
@click.argument("key_id")
def revoke_key(config: Path | None, key_id: str) -> None:
    """End a key. Running gateways refuse it within five seconds."""
    with _told():
        _with_tenants(_settings(config), lambda tenants: tenants.revoke_key(key_id))
    click.echo(f"{key_id} is revoked.")


@main.group()
def catalog() -> None:
    """The models and who sells them."""


@catalog.command("check")
@CONFIG
def check_catalog(config: Path | None) -> None:
    """Read every model file as the server would."""
    from providers.catalog import check_catalog as check

    with _told():
        summary = check(_settings(config).catalog.folder)
    click.echo(f"{summary.models} models, {summary.offers} offers: good.")


@catalog.command("show")
@CONFIG
@click.argument("model")
def show_model(config: Path | None, model: str) -> None:
    """Print a model's offers and how each parameter reaches them."""
    from gateway.shell import describe_model

    with _told():
        click.echo(describe_model(_settings(config), model))


@catalog.command("import")
@click.argument("provider", type=click.Choice(["fal", "replicate"]))
@click.argument("file", type=click.File("rb"))
@click.option("--id", "model_id", help="What callers will send as `model`; made from the endpoint if not given.")
@click.option("--endpoint", help="Which endpoint of the document, or its name where the document does not say.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file that is not there yet; else to standard output.")
def import_model(provider: str, file: BinaryIO, model_id: str | None, endpoint: str | None, output: Path | None) -> None:
    """Draft a model file from FILE, a provider's schema document (`-` reads standard input).

    For fal that is https://fal.ai/api/openapi/queue/openapi.json?endpoint_id=…, for Replicate the answer of
    GET /v1/models/{owner}/{name}.
    """
    from gateway.times import now
    from providers.catalog.documents import DocumentUnusable, parse_document
    from providers.catalog.drafting import draft_model

    try:
        text = draft_model(provider, parse_document(file.read()), now().date(), model_id=model_id, endpoint=endpoint)
    except DocumentUnusable as error:
        _fail(f"{file.name}: {error}")
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        _fail(f"{output} is there already; nothing was written")
    except OSError as error:
        _fail(f"{output}: {error.strerror}")
    click.echo(
        f"{output} is drafted. Settle its price and every line marked guessed or review, then run `catalog check`.", err=True
    )


@main.command()
@CONFIG
@click.argument("picture", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@click.option("--model", required=True)
@click.option("--scale-factor", type=float)
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter; may be given again.")
def explain(config: Path | None, picture: Path | None, model: str, scale_factor: float | None, parameters: tuple[str, ...]) -> None:
    """Print the plan for every offer, and its price, before anything is spent."""
    from gateway.shell import explain_request

    with _told():
        click.echo(explain_request(_settings(config), picture, model, _fields(parameters, scale_factor)))


@main.command()
@CONFIG
@click.argument("picture", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where to; its suffix says the format."
)
@click.option("--model", required=True)
@click.option("--mask", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Transparent where to change.")
@click.option("--scale-factor", type=float)
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter; may be given again.")
def edit(
    config: Path | None,
    picture: Path,
    output: Path,
    model: str,
    mask: Path | None,
    scale_factor: float | None,
    parameters: tuple[str, ...],
) -> None:
    """Edit one picture from the shell, with progress, and print the receipt."""
    from gateway.shell import edit_picture

    with _told():
        asyncio.run(edit_picture(_settings(config), picture, output, model, _fields(parameters, scale_factor), mask))


@main.group()
def local() -> None:
    """The bundled local backend."""


@local.command("serve", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve_local(arguments: tuple[str, ...]) -> None:
    """Run the bundled backend by itself: Cog's prediction API. `--help` lists its options."""
    import runpy

    # A process of its own that nobody imports, here as when the server starts it.
    sys.argv = ["image-gateway local serve", *arguments]
    runpy.run_module("providers.local.server", run_name="__main__", alter_sys=True)


@main.group()
def sim() -> None:
    """Stand-ins for the providers, to try an integration offline; with faults at will.

    Each prints its addresses as a line of JSON once it listens.
    """


@sim.command("fal", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate_fal(arguments: tuple[str, ...]) -> None:
    """Run a stand-in for fal. `--help` lists its options and faults."""
    from providers.simulators.fal import main as simulate

    simulate(arguments)


@sim.command("replicate", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate_replicate(arguments: tuple[str, ...]) -> None:
    """Run a stand-in for Replicate. `--help` lists its options and faults."""
    from providers.simulators.replicate import main as simulate

    simulate(arguments)


def _settings(config: Path | None) -> Settings:
    return read_settings(config)


def _with_tenants(settings: Settings, use: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
    """Open the database for one errand about tenants; an empty or older SQLite one is made current first."""
    from gateway.db.engine import Database
    from gateway.db.migrate import ensure_schema
    from gateway.settings import secret_key
    from gateway.tenants.service import Tenants
    from gateway.times import now

    async def run() -> _T:
        await asyncio.to_thread(ensure_schema, settings.database_url)
        db = Database(settings.database_url)
        try:
            return await use(Tenants(db, secret_key(settings), now))
        finally:
            await db.close()

    return asyncio.run(run())


def _fields(parameters: tuple[str, ...], scale_factor: float | None) -> dict[str, str]:
    """What `-p name=value` says, as texts that the model's schema will type."""
    fields: dict[str, str] = {}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{parameter}: write NAME=VALUE", param_hint="-p")
        fields[name] = value
    return fields | ({} if scale_factor is None else {"scale_factor": f"{scale_factor:g}"})


def _dollars(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        raise click.BadParameter(f"{text} is not an amount in US dollars", param_hint="--budget-usd") from None


@contextmanager
def _told() -> Generator[None]:
    """Turn what is foreseen into a line of words and an exit code of 1."""
    from gateway.backend import BackendFailed
    from gateway.db.connect import DatabaseUnusable
    from normalization.request import InvalidParameter
    from providers.catalog import CatalogError

    try:
        yield
    except GatewayError as error:
        _fail(error.message)
    except (SettingsError, CatalogError, DatabaseUnusable, BackendFailed, InvalidParameter) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    raise SystemExit(1)


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))
