"""The command ``fledge completion``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from fledge.cli.options import EXIT_CODES, Command, new_app

app = new_app()


class Shell(str, Enum):
    """The shells that complete commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


SCRIPTS = {
    Shell.BASH: r"""# Completes fledge in bash. To install it, with the package bash-completion:
#     mkdir -p ~/.local/share/bash-completion/completions
#     fledge completion bash > ~/.local/share/bash-completion/completions/fledge
# Without that package, write into ~/.bashrc:
#     eval "$(fledge completion bash)"
_fledge() {
    # bash cuts words at = and :, and replaces only what follows the last of them.
    local line=${COMP_LINE:0:COMP_POINT} word IFS=$'\n'
    word=${line##*[[:space:]]}
    [[ $word == --*=* ]] && word=${word#*=}
    COMPREPLY=($(_FLEDGE_COMPLETE=complete_lines _TYPER_COMPLETE_ARGS=$line "$1" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
    COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
}
complete -o default -F _fledge fledge
""",
    Shell.ZSH: r"""#compdef fledge
# Completes fledge in zsh. To install it, write it into a folder of $fpath:
#     mkdir -p ~/.zfunc && fledge completion zsh > ~/.zfunc/_fledge
# and into ~/.zshrc, above compinit:
#     fpath=(~/.zfunc $fpath)
_fledge() {
    local line="${words[1,CURRENT]}" program="$words[1]" name help
    local -a found
    _FLEDGE_COMPLETE=complete_lines _TYPER_COMPLETE_ARGS=$line $program 2>/dev/null |
        while IFS=$'\t' read -r name help; do
            [[ -n $name ]] && found+=("${name//:/\\:}${help:+:$help}")
        done
    [[ $PREFIX == --*=* ]] && compset -P '*='
    if (( $#found )); then
        _describe fledge found
    else
        _files
    fi
}
if [[ $funcstack[1] == _fledge ]]; then
    _fledge "$@"
else
    compdef _fledge fledge
fi
""",
    Shell.FISH: r"""# Completes fledge in fish. To install it:
#     mkdir -p ~/.config/fish/completions
#     fledge completion fish > ~/.config/fish/completions/fledge.fish
function __fledge_complete
    set -l word (commandline --current-token --cut-at-cursor)
    set -l option (string match --regex -- '^--[^=]*=' $word)
    set -l program (commandline --tokenize --current-process)[1]
    set -l found (_FLEDGE_COMPLETE=complete_lines \
        _TYPER_COMPLETE_ARGS=(commandline --cut-at-cursor --current-process | string collect) \
        $program 2>/dev/null)
    if test -n "$found[1]"
        printf '%s\n' "$option"$found
    else
        set -l path (string replace -- "$option" '' $word | string replace --regex '^~/' $HOME/)
        for file in $path*
            test -d $file; and set file $file/
            printf '%s\n' "$option$file"
        end
    end
end
complete --command fledge --no-files --arguments '(__fledge_complete)'
""",
}
"""The script for each shell. It calls fledge with the line so far, and gets a candidate a line,
with its help behind a tab; no line where the shell should complete files."""


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    shell: Annotated[
        Shell, typer.Argument(metavar="bash|zsh|fish", help="Your shell.", show_default=False)
    ],
) -> None:
    """Print the script that lets a shell complete.

    The first lines of the script say how to install it.
    """
    print(SCRIPTS[shell], end="")
