#!/bin/sh
# singularity-config.sh - apply the settings of the site osg to an installed singularity.conf.
# Rendered by cvmfs-publish.
#
# Appending lines to that file would do nothing: of a repeated setting the first one counts.  Where
# `singularity config global --set` is safe this asks it, since it checks names and values; it writes
# the file anew, and comments of your own are lost.  Elsewhere, and with --edit, the line is changed
# in place, and everything else stays as it is.  What is right already is not touched, so running it
# again changes nothing.  The former file is kept beside the new one with the date in its name.

set -eu

usage='usage: singularity-config.sh [--dry-run] [--edit] [--singularity PROGRAM] [--config FILE]

  --dry-run      show what would change, change nothing
  --edit         change lines in place, also where "config global --set" could be asked
  --singularity PROGRAM
                 default: singularity from PATH; not needed for --edit --config FILE
  --config FILE  default: the file that this program reads

Exit status: 0 done or nothing to do, 64 wrong usage, 66 no such file, 69 singularity is not
installed, 70 a setting was not taken, 73 cannot write, 77 the file is not for us to change.'

say() {
  printf 'singularity-config: %s\n' "$1" >&2
}

# --- options and files ---

runtime=singularity
config=
dry_run=
method=
while [ $# -gt 0 ]; do
  case $1 in
  --dry-run) dry_run=yes ;;
  --edit) method=edit ;;
  --singularity | --config)
    if [ $# -lt 2 ]; then
      printf '%s\n' "$usage" >&2
      exit 64
    fi
    case $1 in
    --config) config=$2 ;;
    *) runtime=$2 ;;
    esac
    shift
    ;;
  -h | --help)
    printf '%s\n' "$usage"
    exit 0
    ;;
  *)
    say "unknown option: $1"
    printf '%s\n' "$usage" >&2
    exit 64
    ;;
  esac
  shift
done

# limited COMMAND…: a path on a dead file system must not hang this.
if command -v timeout >/dev/null 2>&1; then
  limited() { timeout -k 2 20 "$@"; }
else
  limited() { "$@"; }
fi

installed=yes
command -v "$runtime" >/dev/null 2>&1 || installed=
if [ -z "$installed" ] && { [ -z "$method" ] || [ -z "$config" ]; }; then
  say "$runtime is not installed; nothing to configure"
  exit 69
fi
if [ -z "$method" ]; then
  version=$("$runtime" --version 2>/dev/null) || version=
  case $version in
  'singularity-ce version '[4-9]* | 'singularity-ce version 3.9'* | 'singularity-ce version 3.'[1-9][0-9]*) method=global ;;
  singularity* | '') method=edit ;;
  *)
    say "$runtime is: $version; this file is for singularity, use the one beside it"
    exit 64
    ;;
  esac
fi
if [ -z "$config" ]; then
  config=$("$runtime" buildcfg | sed -n 's/^SINGULARITY_CONF_FILE=//p')
fi
if ! [ -f "$config" ]; then
  say "${config:-the configuration file} does not exist"
  exit 66
fi
config=$(readlink -f -- "$config") # a link stays a link

# A setuid installation refuses a file that is not root's; so do not make it use one.
if [ -n "$installed" ]; then
  libexec=$("$runtime" buildcfg 2>/dev/null | sed -n 's/^LIBEXECDIR=//p')
  if [ -u "$libexec/singularity/bin/starter-suid" ] && [ -z "$(find "$config" -user 0)" ]; then
    say "$config does not belong to root although this is a setuid installation; not touched"
    exit 77
  fi
fi
if [ -z "$dry_run" ] && ! [ -w "${config%/*}" ]; then
  say "${config%/*} is not writable; run this as root, or look with --dry-run"
  exit 73
fi

work=$(mktemp -d)
trap 'rm -rf "$work" "$config.new.$$"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
cp "$config" "$work/new"

# --- reading and changing a copy ---

# The functions of awk below: key() is the name a line sets, or nothing.
# shellcheck disable=SC2016 # for awk
keys='
function key(line,  at, name) {
  at = index(line, "=")
  if (line ~ /^[ \t]*#/ || at == 0) return ""
  name = substr(line, 1, at - 1)
  gsub(/^[ \t]+|[ \t]+$/, "", name) # not inside: two blanks make another name, which nobody knows
  return name
}
function value(line) {
  sub(/^[^=]*=[ \t]*/, "", line)
  sub(/[ \t\r]+$/, "", line)
  return line
}
'

# value_of NAME: what counts, which is the first line with the name.
value_of() {
  name=$1 awk "$keys"' key($0) == ENVIRON["name"] { print value($0); exit }' "$work/new"
}

# list_of NAME: the entries of a list, one per line; lines add up and are split at commas.
list_of() {
  name=$1 awk "$keys"'
    key($0) == ENVIRON["name"] {
      n = split(value($0), part, ",")
      for (i = 1; i <= n; i++) {
        gsub(/^[ \t]+|[ \t]+$/, "", part[i])
        print part[i]
      }
    }' "$work/new"
}

has_entry() {
  list_of "$1" | grep -Fxq -e "$2"
}

# edit NAME VALUE one|more: replace the line that counts and drop those that do not, or add an entry
# after the last one of its list.
edit() {
  name=$1 value=$2 how=$3 awk "$keys"'
    BEGIN { name = ENVIRON["name"]; set = name " = " ENVIRON["value"]; one = ENVIRON["how"] == "one" }
    key($0) == name {
      if (one && found) next
      found = ++lines
      text[lines] = one ? set : $0
      next
    }
    { text[++lines] = $0 }
    END {
      for (i = 1; i <= lines; i++) {
        print text[i]
        if (!one && i == found) print set
      }
      if (!found) print set
    }' "$work/new" >"$work/edited"
  mv "$work/edited" "$work/new"
}

set_global() {
  if ! "$runtime" -c "$work/new" config global --set "$1" "$2"; then
    say "$runtime refuses to set $1 to '$2'; nothing changed"
    exit 70
  fi
}

# set_value NAME VALUE: a setting with one value.
set_value() {
  [ "$(value_of "$1")" != "$2" ] || return 0
  case $method in
  global)
    set_global "$1" "$2"
    found=$("$runtime" -c "$work/new" config global --get "$1") || found=
    ;;
  *)
    edit "$1" "$2" one
    found=$(value_of "$1")
    ;;
  esac
  if [ "$found" != "$2" ]; then
    say "$1 is '$found' after setting it to '$2'; nothing changed"
    exit 70
  fi
}

# add_path NAME PATH: an entry of a list.  A path that does not exist would keep every container
# on this node from starting.
add_path() {
  if ! limited ls -d -- "$2" >/dev/null 2>&1; then
    say "warning: $1: $2 does not exist on this node; left out"
    return 0
  fi
  ! has_entry "$1" "$2" || return 0
  case $method in
  global) set_global "$1" "$2" ;;
  *) edit "$1" "$2" more ;;
  esac
  if ! has_entry "$1" "$2"; then
    say "$1 has no $2 after adding it; nothing changed"
    exit 70
  fi
}

# --- the settings of the site ---

set_value 'mount slave' yes
set_value 'enable overlay' try
set_value 'enable underlay' yes
set_value 'allow container dir' yes

# --- what would spoil jobs although nobody asked for it here ---

if [ "$(value_of 'user bind control')" = no ]; then
  say "warning: 'user bind control = no' drops the launcher's mounts and the working directory without an error"
fi
for name in 'bind path' 'limit container paths'; do
  list_of "$name" | while IFS= read -r entry; do
    if ! limited ls -d -- "${entry%%:*}" >/dev/null 2>&1; then
      say "warning: $name: ${entry%%:*}, in the file already, does not exist: no container can start"
    fi
  done
done

# --- putting it in place ---

if cmp -s "$config" "$work/new"; then
  say "$config: unchanged"
  exit 0
fi
if ! [ -s "$work/new" ]; then
  say "the changed file is empty; nothing changed"
  exit 70
fi
diff -u "$config" "$work/new" || :
if [ -n "$dry_run" ]; then
  say "$config: would change as shown (dry run)"
  exit 0
fi
saved=$config.$(date '+%Y%m%d-%H%M%S')
if [ -e "$saved" ]; then
  saved=$saved.$$
fi
cp -p "$config" "$saved"
# Into a copy with owner and mode of the old file, then one rename: readers see old or new.
cp -p "$config" "$config.new.$$"
cat "$work/new" >"$config.new.$$"
mv -f "$config.new.$$" "$config"
say "$config: changed; the former file is $saved"
