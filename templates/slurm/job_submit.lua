{#
site: name of the site
wrapper: absolute path of cvmfs-batch on nodes
default_image: whether jobs that name no image get one
#}
-- Batch scripts run in an image, at the site {{ site }}.  Rendered by cvmfs-publish.
--
-- Put it beside slurm.conf on the controller, with JobSubmitPlugins=lua.  Where there is a
-- job_submit.lua already, give this another name, add `dofile("/etc/slurm/cvmfs_run.lua")` before
-- your functions, and call `cvmfs_run_submit(job_desc)` from your slurm_job_submit.
--
-- Which image: `--comment=cvmfs-run=IMAGE` (or none) of sbatch, else CVMFS_RUN_IMAGE in the job's
-- environment, else the site's default.  Nothing but the script's first line is changed:
-- `#!/bin/bash` becomes `#!{{ wrapper }} /bin/bash`.

local wrapper = {{ wrapper | quoted }}
local has_default = {{ "true" if default_image else "false" }}

-- A first line is cut off here by kernels older than 5.1.
local longest = 127

-- Scripts that use these need the host, whose programs they are, unless they name an image.
local of_the_host = {}
for name in ("srun sbatch salloc scontrol squeue sbcast mpirun mpiexec cvmfs-run apptainer " ..
  "singularity ch-run podman docker"):gmatch("%S+") do
  of_the_host[name] = true
end

local function needs_host(script)
  for line in script:gmatch("[^\n]+") do
    if not line:find("^%s*#") then
      for word in line:gmatch("[%w_./-]+") do
        if of_the_host[word:match("[^/]*$")] then
          return true
        end
      end
    end
  end
  return false
end

-- The image a job names, and nil if it names none.
local function named_image(job_desc)
  local comment = job_desc.comment or ""
  local image = (" " .. comment):match("[%s,;]cvmfs%-run=([^%s,;]+)")
  if not job_desc.environment then
    return image -- Slurm will refuse a script without environment, with a message of its own
  end
  if image then
    job_desc.environment["CVMFS_RUN_IMAGE"] = image
    return image
  end
  image = job_desc.environment["CVMFS_RUN_IMAGE"]
  if image ~= "" then
    return image
  end
end

function cvmfs_run_submit(job_desc)
  local script = job_desc.script
  if not script or script == "" then
    return -- salloc, srun
  end
  local interpreter = script:match("^#![ \t]*([^\n]*)")
  if not interpreter or interpreter == "" or interpreter:sub(1, #wrapper) == wrapper then
    return
  end
  local image = named_image(job_desc)
  if image == "none" or not image and (not has_default or needs_host(script)) then
    return
  end
  local first = "#!" .. wrapper .. " " .. interpreter
  if #first > longest then
    slurm.log_user("cvmfs-run: the first line is too long, the job runs without image: %s", interpreter)
    return
  end
  job_desc.script = first .. script:sub((script:find("\n", 1, true) or #script + 1))
end

function slurm_job_submit(job_desc, part_list, submit_uid)
  cvmfs_run_submit(job_desc)
  return slurm.SUCCESS
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return slurm.SUCCESS
end

return slurm.SUCCESS
