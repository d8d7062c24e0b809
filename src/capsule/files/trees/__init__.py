"""Ways through trees that others may write to; none follows a link."""
