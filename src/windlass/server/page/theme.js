// Before the first paint, so that a theme chosen by hand does not flash; a module would run too late.
{
  const theme = localStorage.getItem("windlass.theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
