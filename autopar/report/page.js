"use strict"
for (const item of JSON.parse(document.getElementById("figures").textContent)) {
  Bokeh.embed.embed_item(item, item.target_id).then(() => {
    if (!matchMedia("(pointer: coarse)").matches) return
    // A finger on a figure scrolls the page, until a tool is chosen from the bar above the figure.
    for (const shown of Bokeh.documents)
      for (const plot of shown.roots())
        for (const tool of plot.toolbar.tools)
          if (tool.type === "BoxZoomTool") tool.active = false
  })
}
const showTools = (shown) => {
  for (const each of Bokeh.documents) for (const plot of each.roots()) plot.toolbar.visible = shown
}
addEventListener("beforeprint", () => {
  showTools(false)
  for (const each of document.querySelectorAll("details")) each.open = true
})
addEventListener("afterprint", () => showTools(true))
