-- example-tools 2.0 out of a published image, for Lmod.  Rendered by cvmfs-publish.
help("example-tools 2.0, commands of the image ghcr.io/example/tools:2.0:\n  example-fit\nexample-tools-exec runs any command of the image\nexample-tools-shell is a shell in the image")
whatis("Name: example-tools")
whatis("Version: 2.0")
conflict("example-tools")

-- Found relative to this file, <root>/modules/NAME/VERSION.lua, so that the folder may be moved.
local root = string.match(myFileName(), "^(/.*)/[^/]+/[^/]+/[^/]+$") or "/opt/cvmfs-run"
prepend_path("PATH", pathJoin(root, "software/example-tools/2.0/bin"))
