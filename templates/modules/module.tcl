{#
module: name of the module
version: version of the module
help: text of `module help`
whatis: lines of `module whatis`
folder: where the commands are, relative to the rendered folder
environment: variables the module sets, by name
#}
#%Module1.0
# {{ module }} {{ version }} out of a published image, for Environment Modules and Lmod.
# Rendered by cvmfs-publish.
proc ModulesHelp { } {
    puts stderr {{ help | tcl }}
}
{% for line in whatis %}
module-whatis {{ line | tcl }}
{% endfor %}
conflict {{ module | tcl }}

# Found relative to this file, <root>/modules-tcl/NAME/VERSION, so that the folder may be moved.
set root [file dirname [file dirname [file dirname $ModulesCurrentModulefile]]]
prepend-path PATH [file join $root {{ folder | tcl }}]
{% for variable, value in environment.items() %}
setenv {{ variable | tcl }} {{ value | tcl }}
{% endfor %}
