"""`python -m cvmfs_publish` is `cvmfs-publish`."""

from cvmfs_publish.cli.app import main

if __name__ == "__main__":
    main()
