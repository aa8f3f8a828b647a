"""The command ``fledge manifest``."""

from __future__ import annotations

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    ArtifactArgument,
    BaseUrlOption,
    Command,
    ConfigOption,
    ManifestOption,
    VerboseOption,
    new_app,
)

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    config: ConfigOption = None,
    manifest: ManifestOption = None,
    base_url: BaseUrlOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Print the plugin manifest of an artifact.

    Volant needs it to install the artifact. What it says comes from the configuration, the
    artifact and its provenance.
    """
    runs.manifest.run(artifact, config, manifest, base_url, verbose)
