"""Report as one HTML file: the runs as data, their pictures and plots, and the page that shows them."""
