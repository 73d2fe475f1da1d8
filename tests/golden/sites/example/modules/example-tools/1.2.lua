-- example-tools 1.2 out of a published image, for Lmod.  Rendered by cvmfs-publish.
help("fits and plots\nexample-tools 1.2, commands of the image ghcr.io/example/tools:1.2:\n  example-fit\n  example-plot\nexample-tools-exec runs any command of the image\nexample-tools-shell is a shell in the image\nSee https://tools.example.org")
whatis("Name: example-tools")
whatis("Version: 1.2")
whatis("Description: fits and plots")
whatis("URL: https://tools.example.org")
conflict("example-tools")

-- Found relative to this file, <root>/modules/NAME/VERSION.lua, so that the folder may be moved.
local root = string.match(myFileName(), "^(/.*)/[^/]+/[^/]+/[^/]+$") or "/opt/cvmfs-run"
prepend_path("PATH", pathJoin(root, "software/example-tools/1.2/bin"))
setenv("EXAMPLE_TOOLS", "1.2")
