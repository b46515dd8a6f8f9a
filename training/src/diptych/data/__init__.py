"""From messy files to rows that training can use, and the openclipart data to start with."""
