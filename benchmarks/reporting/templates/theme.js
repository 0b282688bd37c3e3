// Gives the figures the page's colors, and again when the system switches between light and dark.
function paint() {
  const style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  const clear = 'rgba(0,0,0,0)';
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const change = {'font.color': color('--text'), paper_bgcolor: clear, plot_bgcolor: clear};
    for (const axis of Object.keys(plot.layout).filter(key => /^[xy]axis/.test(key)))
      for (const line of ['gridcolor', 'linecolor', 'zerolinecolor'])
        change[`${axis}.${line}`] = color('--grid');
    Plotly.relayout(plot, change);
  }
}
paint();
matchMedia('(prefers-color-scheme:dark)').addEventListener('change', paint);
