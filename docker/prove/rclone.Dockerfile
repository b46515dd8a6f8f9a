# Stands in for rclone's image, with Debian's rclone where that one has it.
ARG DEBIAN_IMAGE
FROM ${DEBIAN_IMAGE}
RUN cp /usr/bin/rclone /usr/local/bin/rclone
