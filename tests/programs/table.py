"""Programs of a distribution that keep a part of themselves outside of /usr: each runs in a capsule.

Run by tests/programs/run, where their packages are installed: each outside, as a control, and inside.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple


class Program(NamedTuple):
    """One row.

    Attributes:
        packages: Debian's names, separated by blanks.
        script: for sh, which ends with 0 and writes what `says` matches.
        says: a regular expression.
        options: of capsule run.
        refused: what Capsule or the program says inside, where it is not to work there.
    """

    packages: str
    script: str
    says: str
    options: tuple[str, ...] = ()
    refused: str = ""


_LATEX = r"printf '\\documentclass{article}\\begin{document}x\\end{document}' >a.tex"
_SVG = 'printf \'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\' >/tmp/a.svg'
_TONE = "ffmpeg -v error -f lavfi -i testsrc=duration=1:size=64x48:rate=5 /tmp/a.mp4 && ls /tmp/a.mp4"
_PAGE = "echo '<p id=p>there</p>' >/tmp/p.html"
_DOCBOOK = (
    'printf \'<article xmlns="http://docbook.org/ns/docbook" version="5.0"><title>Tt</title>'
    "<para>x</para></article>' >a.xml"
)
# What root does where they are installed: programs of /opt, a prefix and a single file.
SET_UP = """\
mkdir -p /opt/vendor/product/bin /opt/vendor/product/lib
echo pak >/opt/vendor/product/lib/data
cat >/opt/vendor/product/bin/of-a-vendor <<'END'
#!/bin/sh
exec cat "$(dirname "$(readlink -f "$0")")/../lib/data"
END
printf '#!/bin/sh\\necho single\\n' >/opt/one-file-of-opt
chmod 755 /opt/vendor/product/bin/of-a-vendor /opt/one-file-of-opt
ln -sf /opt/vendor/product/bin/of-a-vendor /opt/one-file-of-opt /usr/local/bin
"""
# The name is what is looked for when one row is to be run alone.
PROGRAMS = {
    "pdflatex": Program(
        "texlive-latex-base",
        f"cd /tmp && {_LATEX} && pdflatex -interaction=batchmode a.tex >/dev/null && ls a.pdf",
        "a.pdf",
    ),
    "kpsewhich": Program("", "kpsewhich texmf.cnf article.cls", "article.cls"),
    "R": Program("r-base-core", "Rscript -e 'cat(mean(c(1, 2, 6)), Sys.getenv(\"R_HOME\"))'", "3 /usr"),
    "php": Program(
        "php-cli php-mbstring",
        "php -r 'var_dump(extension_loaded(\"mbstring\"), php_ini_loaded_file());'",
        r"true.*\n.*/etc/php/.*/php.ini",
    ),
    "composer": Program("composer", "composer --no-ansi --version 2>/dev/null", "Composer version"),
    "mvn": Program("maven", "mvn -v", "Apache Maven"),
    "gradle": Program("gradle", "gradle --offline -v", "Gradle [0-9]"),
    "java": Program("default-jdk-headless", "java -XshowSettings:locale -version 2>&1", "OpenJDK"),
    "javac": Program(
        "",
        "cd /tmp && echo 'class A { public static void main(String[] a) {"
        " System.out.println(java.security.Security.getProviders().length > 5); } }' >A.java"
        " && javac A.java && java A",
        "true",
    ),
    "ruby": Program("ruby ruby-nokogiri rake", "ruby -e 'require \"nokogiri\"; puts RUBY_VERSION'", "3"),
    "gem": Program("", "gem list", "rake"),
    "rake": Program("", "rake --version", "rake, version"),
    "aspell": Program("aspell aspell-en", "echo helo | aspell -l en -a | tail -2", "hello"),
    "hunspell": Program("hunspell hunspell-en-us", "echo helo | hunspell -d en_US", "hello"),
    "man": Program("man-db", "MANPAGER=cat man -w ls; man --path", "man"),
    "groff": Program("groff", r"printf '.TH A 1\n.SH NAME\nthere\n' | groff -man -Tascii", "there"),
    "dpkg": Program("", "dpkg -l bash | tail -1; dpkg -S /bin/sh; dpkg -L bash | head -2", "bash.*[0-9]"),
    "dpkg-dev": Program("dpkg-dev", "dpkg-architecture -qDEB_HOST_ARCH; dpkg-vendor --query Vendor", "Debian"),
    "update-alternatives": Program("", "update-alternatives --query awk", "Alternative: /usr"),
    "matplotlib": Program(
        "python3-matplotlib",
        "/usr/bin/python3 -c 'import matplotlib, matplotlib.pyplot as p; p.plot([1, 2]);"
        " p.savefig(\"/tmp/a.png\"); print(matplotlib.matplotlib_fname())'",
        "matplotlibrc",
    ),
    "convert": Program(
        "imagemagick", "convert -size 50x20 label:hi /tmp/t.png && identify /tmp/t.png", "PNG 50x20"
    ),
    "gs": Program(
        "ghostscript",
        "gs -q -dNODISPLAY -dBATCH -c '(there) = /Helvetica findfont /FontName get ='",
        "there",
    ),
    "soffice": Program(
        "libreoffice-writer-nogui",
        "cd /tmp && echo there >a.txt && soffice --headless --convert-to pdf a.txt >/dev/null 2>&1;"
        " ls /tmp/a.pdf",
        "a.pdf",
    ),
    "chromium": Program(
        "chromium",
        f"{_PAGE} && chromium --headless --disable-gpu --no-sandbox --dump-dom file:///tmp/p.html 2>/dev/null",
        "there",
        ("--keep-id",),
    ),
    "dot": Program("graphviz", "echo 'digraph { a -> b }' | dot -Tsvg", "<svg"),
    "ffmpeg": Program("ffmpeg", _TONE, "a.mp4"),
    "ansible": Program("ansible-core", "ansible localhost -m ping 2>/dev/null", "pong"),
    "lua": Program("lua5.4", "lua5.4 -e 'print(_VERSION)'", "5.4"),
    "ocaml": Program(
        "ocaml-nox",
        "cd /tmp && echo 'let () = print_string \"there\"' >a.ml && ocamlfind ocamlopt -version"
        " 2>/dev/null; ocamlopt a.ml -o a.out && ./a.out",
        "there",
    ),
    "ghc": Program(
        "ghc", "cd /tmp && echo 'main = putStrLn \"there\"' >a.hs && ghc -v0 a.hs && ./a", "there"
    ),
    "erl": Program(
        "erlang-base", "erl -noshell -eval 'io:format(\"~s~n\", [\"there\"]), halt().'", "there"
    ),
    "mono": Program(
        "mono-mcs mono-runtime",
        "cd /tmp && echo 'class A { static void Main() { System.Console.WriteLine(System.Configuration"
        ".ConfigurationManager.AppSettings.Count); } }' >a.cs"
        " && mcs -r:System.Configuration a.cs && mono a.exe",
        "0",
    ),
    "octave": Program("octave", "octave --no-gui --eval 'disp(det([2 0; 0 3]))' 2>/dev/null", "6"),
    "gnuplot": Program(
        "gnuplot-nox", "gnuplot -e 'set term png; set output \"/tmp/a.png\"; plot x' && ls /tmp/a.png", "png"
    ),
    "inkscape": Program(
        "inkscape", f"{_SVG} && inkscape -o /tmp/a.png /tmp/a.svg 2>/dev/null; ls /tmp/a.png", "a.png"
    ),
    "pandoc": Program("pandoc", "echo '*there*' | pandoc -t html", "<em>there"),
    "sphinx": Program(
        "python3-sphinx",
        "mkdir /tmp/s && cd /tmp/s && touch conf.py && echo there >index.rst"
        " && sphinx-build -q . out && ls out/index.html",
        "index.html",
    ),
    "xsltproc": Program(
        "xsltproc docbook-xsl-ns",
        f"cd /tmp && {_DOCBOOK} && xsltproc --nonet"
        " http://docbook.sourceforge.net/release/xsl-ns/current/xhtml/docbook.xsl a.xml 2>/dev/null",
        "<title>Tt",
    ),
    "git-lfs": Program("git-lfs", "cd /tmp && git init -q l && cd l && git lfs track '*.bin'", "Tracking"),
    "svn": Program(
        "subversion",
        "svnadmin create /tmp/r && svn checkout -q file:///tmp/r /tmp/wc && svn info /tmp/wc",
        "Revision: 0",
    ),
    "hg": Program("mercurial", "hg init /tmp/h && hg -R /tmp/h showconfig extensions; hg root -R /tmp/h", "/tmp/h"),
    "docker": Program("docker.io", "docker --version; docker context ls", "default"),
    "aws": Program("awscli", "aws --version; aws configure list", "access_key"),
    "mysql": Program("default-mysql-client", "mysql --print-defaults; mysql --version", "[Mm]aria"),
    "psql": Program("postgresql-client", "psql --version; pg_config --version 2>/dev/null; true", "PostgreSQL"),
    "nmap": Program("nmap", "nmap -sT -p 1-3 127.0.0.1", "closed"),
    "tcpdump": Program(
        "tcpdump",
        "/usr/bin/tcpdump -c 1 -i lo",
        "",
        refused=r"capsule: refused: socket\(AF_PACKET\)",
    ),
    "ping": Program("iputils-ping", "ping -c 1 127.0.0.1", "1 received"),
    "vim": Program("vim", "vim -es -u NONE -c 'put =1+1' -c '%p' -c 'qa!'", "2"),
    "emacs": Program("emacs-nox", "emacs --batch --eval '(princ emacs-version)'", "[0-9]"),
    "lp": Program("cups-client", "lpstat -H; lp --help 2>&1 | head -1", "Usage: lp"),
    "fonts": Program(
        "fontconfig fonts-dejavu", "fc-match monospace; fc-list | wc -l", "DejaVu"
    ),
    "locale": Program(
        "locales-all", "LC_ALL=de_DE.UTF-8 locale currency_symbol mon; LC_ALL=de_DE.UTF-8 date -d 2026-03-01 +%B", "März"
    ),
    "sbcl": Program("sbcl", "sbcl --noinform --non-interactive --eval '(print (+ 1 41))'", "42"),
    "swipl": Program("swi-prolog-nox", "swipl -g 'X is 6*7, print(X), nl' -t halt", "42"),
    "guile": Program("guile-3.0", "guile -c '(display (* 6 7))'", "42"),
    # It wants its data executable, and starts itself again with that.
    "maxima": Program(
        "maxima", "maxima --very-quiet --batch-string='6*7;'", "42", ("--allow-syscall", "personality")
    ),
    "fpc": Program(
        "fp-compiler", "cd /tmp && echo 'begin writeln(42) end.' >a.pas && fpc -v0 a.pas >/dev/null && ./a", "42"
    ),
    "go": Program(
        "golang-go",
        "cd /tmp && echo 'package main; func main() { println(42) }' >a.go && go run a.go 2>&1",
        "42",
    ),
    "rustc": Program(
        "rustc", "cd /tmp && echo 'fn main() { println!(\"42\") }' >a.rs && rustc a.rs && ./a", "42"
    ),
    "node": Program("nodejs npm", "node -p 6*7; npm --version", "42"),
    "perl": Program("perl", "perl -MPOSIX -MJSON::PP -e 'print 6*7'", "42"),
    "tclsh": Program("tcl", "echo 'puts [expr 6*7]; puts [clock format 0 -gmt 1]' | tclsh", "42"),
    "sqlite3": Program("sqlite3", "sqlite3 :memory: 'select 6*7'", "42"),
    "ipython": Program("python3-ipython", "/usr/bin/python3 -m IPython --version", "[0-9]"),
    "sox": Program("sox", "sox -n /tmp/a.wav synth 0.1 sine 440 && soxi /tmp/a.wav", "Channels"),
    "lynx": Program("lynx", f"{_PAGE} && lynx -dump /tmp/p.html", "there"),
    "w3m": Program("w3m", f"{_PAGE} && w3m -dump /tmp/p.html", "there"),
    "wget": Program("wget", "wget --version; wget -qO- http://127.0.0.1:9 || echo none", "GNU Wget.*none"),
    "openssl": Program("openssl", "openssl req -new -x509 -nodes -newkey rsa:2048 -subj /CN=a -keyout /tmp/k", "BEGIN"),
    "gpg": Program("gnupg", "gpg --batch --version; gpg --batch -k", "gpg"),
    "ssh": Program("openssh-client", "ssh-keygen -q -t ed25519 -N '' -f /tmp/k && ssh -G there", "hostname there"),
    "klist": Program("krb5-user", "klist -V", "Kerberos"),
    "ldapsearch": Program("ldap-utils", "ldapsearch -VV 2>&1", "OpenLDAP"),
    "smbclient": Program("smbclient", "smbclient --version 2>/dev/null", "Version"),
    "snmpget": Program("snmp", "snmptranslate -V 2>&1", "NET-SNMP"),
    "ip": Program("iproute2", "ip -br addr; ip route show table main", "lo"),
    "screen": Program("screen", "screen --version; true", "Screen"),
    "tmux": Program("tmux", "tmux -L t new-session -d 'sleep 9' && tmux -L t ls; tmux -L t kill-server", "1 windows"),
    "nano": Program("nano", "nano --version", "nano"),
    "shellcheck": Program("shellcheck", "echo 'echo $x' >/tmp/a.sh; shellcheck -s sh /tmp/a.sh; true", "SC2154|SC2086"),
    "file": Program("file", "file /bin/ls", "ELF|link"),
    "of-a-vendor": Program("", "of-a-vendor", "pak"),
    "one-file-of-opt": Program("", "one-file-of-opt", "single"),
}  # fmt: skip


def run(words: list[str], folder: str) -> tuple[int, str, float]:
    """(Status, what it wrote, seconds) of a command in a directory."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired as error:
        return -1, f"timed out: {error.stdout!r}", time.monotonic() - began
    said = (done.stdout + done.stderr).decode(errors="replace")
    return done.returncode, said, time.monotonic() - began


def clean(before: set[str]) -> None:
    """Leave nothing in /tmp that a second run would find, which inside is another."""
    for entry in os.scandir("/tmp"):
        if entry.name in before:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def is_right(program: Program, status: int, said: str) -> bool:
    """Return whether a program did what it is for."""
    return status == 0 and re.search(program.says, said, re.DOTALL) is not None


def check(name: str, program: Program, capsule: str, *, verbose: bool) -> str:
    """Run one program outside and inside, and say in a word how it went; "" for as it should."""
    words = ["sh", "-c", program.script]
    with tempfile.TemporaryDirectory(dir=os.path.expanduser("~")) as folder:
        before = set(os.listdir("/tmp"))
        outside = run(words, folder)
        clean(before)
        inside = run([capsule, "run", *program.options, "--", *words], folder)
    if program.refused:
        word = (
            ""
            if inside[0] != 0 and re.search(program.refused, inside[1])
            else "not refused with a word"
        )
    elif not is_right(program, *outside[:2]):
        word = "fails outside"
    else:
        word = "" if is_right(program, *inside[:2]) else f"fails inside: status {inside[0]}"
    times = f"{outside[2]:6.2f} {inside[2]:6.2f}"
    print(f"{name:20} {times}  {word or ('refused' if program.refused else 'ok')}", flush=True)
    if word and verbose:
        print(f"  outside: {outside[1][-600:]}\n  inside: {inside[1][-900:]}", flush=True)
    return word


def main() -> int:
    """Run all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", action="store_true", help="print what is to be installed")
    parser.add_argument("--set-up", action="store_true", help="print what root is to do there, for sh")
    parser.add_argument("--capsule", default="capsule", help="the command that is tried")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what a failure said")
    parser.add_argument("name", nargs="*")
    given = parser.parse_args()
    if unknown := set(given.name) - PROGRAMS.keys():
        parser.error(f"no such row: {' '.join(sorted(unknown))}")
    if given.set_up:
        print(SET_UP, end="")
        return 0
    if given.packages:
        print(
            "python3-venv ca-certificates git",
            *dict.fromkeys(" ".join(one.packages for one in PROGRAMS.values()).split()),
        )
        return 0
    print(f"{'program':20} {'outside':>6} {'inside':>6} s", flush=True)
    words = {
        name: check(name, PROGRAMS[name], given.capsule, verbose=given.verbose)
        for name in given.name or PROGRAMS
    }
    wrong = [name for name, word in words.items() if word]
    print(f"{len(words) - len(wrong)} of {len(words)} as they should be", *wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
