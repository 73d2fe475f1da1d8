{#
module: name of the module
version: version of the module
help: text of `module help`
whatis: lines of `module whatis`
folder: where the commands are, relative to the rendered folder
install_dir: where the rendered folder lies on nodes
environment: variables the module sets, by name
#}
-- {{ module }} {{ version }} out of a published image, for Lmod.  Rendered by cvmfs-publish.
help({{ help | quoted }})
{% for line in whatis %}
whatis({{ line | quoted }})
{% endfor %}
conflict({{ module | quoted }})

-- Found relative to this file, <root>/modules/NAME/VERSION.lua, so that the folder may be moved.
local root = string.match(myFileName(), "^(/.*)/[^/]+/[^/]+/[^/]+$") or {{ install_dir | quoted }}
prepend_path("PATH", pathJoin(root, {{ folder | quoted }}))
{% for variable, value in environment.items() %}
setenv({{ variable | quoted }}, {{ value | quoted }})
{% endfor %}
