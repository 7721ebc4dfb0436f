# The default file system of volumes.
"ext4"
