"""Image operations on decoded pictures. The only place that imports Pillow; nothing here opens a file by itself."""
