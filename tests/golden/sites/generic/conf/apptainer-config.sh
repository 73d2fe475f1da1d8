#!/bin/sh
# Apply the settings of the site generic to an installed apptainer.conf.  Rendered by cvmfs-publish.
#
# Appending lines to the file would do nothing: of a repeated setting the first one counts.  This
# asks `apptainer config global --set`, which checks names and values.  Running it again changes
# nothing.  Note that it writes the file anew, so comments of your own are lost; the former file
# is kept beside it with the date in its name.

set -eu

usage='usage: apptainer-config.sh [--dry-run] [--apptainer PROGRAM] [--config FILE]

  --dry-run            show what would change, change nothing
  --apptainer PROGRAM  default: apptainer from PATH
  --config FILE        default: the file this apptainer reads'

apptainer=apptainer
config=
dry_run=
while [ $# -gt 0 ]; do
  case $1 in
  --dry-run) dry_run=yes ;;
  --apptainer | --config)
    if [ $# -lt 2 ]; then
      printf '%s\n' "$usage" >&2
      exit 64
    fi
    case $1 in
    --apptainer) apptainer=$2 ;;
    --config) config=$2 ;;
    esac
    shift
    ;;
  -h | --help)
    printf '%s\n' "$usage"
    exit 0
    ;;
  *)
    printf 'apptainer-config: unknown option: %s\n%s\n' "$1" "$usage" >&2
    exit 64
    ;;
  esac
  shift
done

say() {
  printf 'apptainer-config: %s\n' "$1" >&2
}

if ! command -v "$apptainer" >/dev/null 2>&1; then
  say "$apptainer is not installed; nothing to configure"
  exit 69
fi
if [ -z "$config" ]; then
  config=$("$apptainer" buildcfg | sed -n 's/^APPTAINER_CONF_FILE=//p')
fi
if ! [ -f "$config" ]; then
  say "$config does not exist"
  exit 66
fi
# A setuid installation refuses a file that is not root's; so do not make it use one.
starter=$("$apptainer" buildcfg | sed -n 's/^LIBEXECDIR=//p')/apptainer/bin/starter-suid
if [ -u "$starter" ] && [ -z "$(find "$config" -user 0)" ]; then
  say "$config does not belong to root although this is a setuid installation; not touched"
  exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
cp "$config" "$work/new"

# set_value NAME VALUE: a setting with one value.
set_value() {
  "$apptainer" -c "$work/new" config global --set "$1" "$2"
  found=$("$apptainer" -c "$work/new" config global --get "$1")
  if [ "$found" != "$2" ]; then
    say "$1 is '$found' after setting it to '$2'; nothing changed"
    exit 70
  fi
}

# add_path NAME PATH: an entry of a list.  A path that does not exist would keep every container
# on this node from starting.
add_path() {
  if ! [ -e "$2" ]; then
    say "$1: $2 does not exist on this node; left out"
    return 0
  fi
  "$apptainer" -c "$work/new" config global --set "$1" "$2"
  case ,$("$apptainer" -c "$work/new" config global --get "$1"), in
  *,"$2",*) ;;
  *)
    say "$1 has no $2 after adding it; nothing changed"
    exit 70
    ;;
  esac
}

set_value 'mount slave' yes
set_value 'enable overlay' yes
set_value 'enable underlay' yes
set_value 'allow container dir' yes

case $("$apptainer" -c "$work/new" config global --get 'user bind control') in
no) say "warning: 'user bind control = no' drops the launcher's mounts and the working directory without an error" ;;
esac

if cmp -s "$config" "$work/new"; then
  say "$config: unchanged"
  exit 0
fi
diff -u "$config" "$work/new" || :
if [ -n "$dry_run" ]; then
  say "$config: would change as shown (dry run)"
  exit 0
fi
saved=$config.$(date '+%Y%m%d-%H%M%S')
cp -p "$config" "$saved"
# Into a copy with owner and mode of the old file, then one rename: readers see old or new.
cp -p "$config" "$config.new"
cat "$work/new" >"$config.new"
mv "$config.new" "$config"
say "$config: changed; the former file is $saved"
