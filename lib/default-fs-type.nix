# The file system of volumes that name none.
"ext4"
